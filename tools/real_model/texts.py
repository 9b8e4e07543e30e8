"""Paragraphs of running text: HTML pages, and novels in R's storage."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

SHORTEST = 200
"""Characters that a paragraph has at least; shorter ones are headings and captions."""

LETTERS = 0.93
"""Least share of letters and spaces, which leaves out lists of commands and addresses."""

_BLOCKS = ("p", "li", "blockquote", "h1", "h2", "h3", "div", "br", "td")
_SKIPPED = ("script", "style", "pre", "code", "head")


class _Paragraphs(HTMLParser):
    """Collector of the text of block elements."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self._words: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._skipped += tag in _SKIPPED
        if tag in _BLOCKS:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in _SKIPPED and self._skipped > 0
        if tag in _BLOCKS:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self._words.append(data)

    def flush(self) -> None:
        paragraph = " ".join("".join(self._words).split())
        self._words = []
        if paragraph:
            self.paragraphs.append(paragraph)


def html_paragraphs(pages: Iterable[Path]) -> list[str]:
    """Returns the distinct paragraphs of running text of HTML pages, in order."""
    paragraphs: dict[str, None] = {}
    for page in pages:
        parser = _Paragraphs()
        parser.feed(page.read_text(encoding="utf-8", errors="replace"))
        parser.flush()
        paragraphs |= dict.fromkeys(filter(is_running_text, parser.paragraphs))
    return list(paragraphs)


def is_running_text(paragraph: str) -> bool:
    """True if a paragraph is long and mostly letters.

    >>> is_running_text("A short line."), is_running_text("All is well that ends well " * 8)
    (False, True)
    """
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return len(paragraph) >= SHORTEST and letters >= LETTERS * len(paragraph)


def novel_paragraphs(lines: Iterable[str]) -> list[str]:
    """Returns the paragraphs of a novel that is stored as lines, with blank lines between them."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines))
    return [p for p in (" ".join(block.split()) for block in blocks) if len(p) >= SHORTEST]


def r_string_vectors(database: bytes) -> Iterator[list[str]]:
    """Yields the character vectors of an R package's `Rdata.rdb`.

    The file is a row of objects: the length as a big-endian integer, then the serialized object
    compressed by zlib. See "R Internals", sections 1.8 and 2.4.
    """
    while database:
        stream = zlib.decompressobj()
        yield _r_strings(stream.decompress(database[4:]))
        database = stream.unused_data


def _r_strings(serialized: bytes) -> list[str]:
    """Strings of one serialized character vector of version 3, in big-endian format."""
    (encoding_bytes,) = struct.unpack_from(">i", serialized, 14)
    at = 18 + encoding_bytes
    kind, count = struct.unpack_from(">ii", serialized, at)
    if serialized[:2] != b"X\n" or kind & 255 != 16:
        raise ValueError("Rdata.rdb holds an object that is no character vector")
    strings, at = [], at + 8
    for _ in range(count):
        (length,) = struct.unpack_from(">i", serialized, at + 4)
        at += 8
        strings.append(serialized[at : at + max(length, 0)].decode("utf-8", "replace"))
        at += max(length, 0)
    return strings
