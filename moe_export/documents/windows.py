"""Windows of tokens from a text file, drawn without reading all of a large one.

A file with plenty of text is divided into as many parts as windows are asked for, and one window is
read from a random line of each part. A file with little text is encoded piece by piece from its
start, and windows are drawn from all that it makes.
"""

from __future__ import annotations

import codecs
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from moe_export.documents.files import (
    kind_of,
    not_utf8,
    refuse_foreign,
    require_text,
    unreadable,
)
from moe_export.documents.reservoir import sampled
from moe_export.documents.rows import BOM, MAX_ROW_BYTES
from moe_export.documents.special_tokens import who_adds_bos
from moe_export.documents.tokens import TextTokenizer, TokenSequence
from moe_export.errors import CalibrationError

BYTES_PER_TOKEN = 8
"""Bytes of text that are read at first for each token of a window, twice what most texts need."""

LEAST_BYTES = 1 << 12
"""Fewest bytes read for a window, so that it can begin at a line."""

PIECE_BYTES = 1 << 16
"""Bytes of text that are encoded at a time, as the tokenizer takes 250 times as much memory."""

BEFORE_CHARACTERS = 16
"""Characters before a piece that are encoded with it, so that it does not begin like a text."""

ARRAY_OF_ROWS = re.compile(rb"\s*\[\s*\{")


def windows(
    path: Path, tokenizer: TextTokenizer, count: int, length: int, seed: int
) -> list[TokenSequence]:
    """Draws windows of exactly `length` tokens, without overlap, in the order of the text.

    A window begins with the tokens that the tokenizer puts before a text, such as BOS.

    Args:
        path: Text file in UTF-8.
        tokenizer: Tokenizer of the model.
        count: Number of windows.
        length: Tokens of each.
        seed: Seed of the draw.

    Raises:
        CalibrationError: The file cannot be read, is no text, or has too little of it.
    """
    if kind_of(path) != "text":
        raise CalibrationError(
            f"{path} is compressed or a table, expected plain text; unpack it, or give its rows as "
            "jsonl:"
        )
    try:
        with path.open("rb") as file:
            _require_plain(path, file)
            found = _from_parts(path, file, tokenizer, count, length, seed)
            if found is None:
                found = _from_all(path, file, tokenizer, count, length, seed)
    except OSError as error:
        raise unreadable(path, error) from error
    if not any(tokenizer.decode(each.tokens[each.prompt_tokens :]).strip() for each in found):
        raise CalibrationError(f"{path}: its text is white space alone; give a file with words")
    return found


def _require_plain(path: Path, file: IO[bytes]) -> None:
    """Stops at content that is no plain text, also at rows of JSON, which are not to be learned."""
    head = file.read(512)
    refuse_foreign(path, head)
    file.seek(0)
    line = file.readline(MAX_ROW_BYTES).removeprefix(BOM)
    try:
        has_rows = line.startswith(b"{") and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        has_rows = False
    if has_rows or ARRAY_OF_ROWS.match(head.removeprefix(BOM)):
        raise CalibrationError(
            f"{path} holds rows of JSON, expected plain text; give it as jsonl:, with the name of "
            "its field in text_field"
        )


def _from_parts(
    path: Path, file: IO[bytes], tokenizer: TextTokenizer, count: int, length: int, seed: int
) -> list[TokenSequence] | None:
    """Draws one window from each part of the file; None if a part has too little text."""
    size = os.fstat(file.fileno()).st_size
    read_bytes = max(LEAST_BYTES, BYTES_PER_TOKEN * length)
    part_bytes = size // count
    if part_bytes < 2 * read_bytes:
        return None
    draws = random.Random(seed)
    found = []
    for part in range(count):
        window = _from_part(path, file, tokenizer, (part * part_bytes, part_bytes), length, draws)
        if window is None:
            return None
        found.append(window)
    return found


def _from_part(
    path: Path,
    file: IO[bytes],
    tokenizer: TextTokenizer,
    part: tuple[int, int],
    length: int,
    draws: random.Random,
) -> TokenSequence | None:
    """Draws a window from a part of the file, given by its first byte and its number of bytes."""
    first, part_bytes = part
    count = max(LEAST_BYTES, BYTES_PER_TOKEN * length)
    while True:
        start = first + draws.randrange(part_bytes - count + 1)
        ids = tokenizer.encode_text(_text_at(path, file, start, count))
        window = next(_split([ids], tokenizer, length), None)
        if window is not None or count == part_bytes:
            return window
        count = min(4 * count, part_bytes)


def _text_at(path: Path, file: IO[bytes], start: int, count: int) -> str:
    """Text of some bytes, from the first line that begins among them if that is early enough."""
    file.seek(start)
    block = file.read(count)
    line = block.find(b"\n", 0, count // 4) + 1 if start > 0 else 0
    block = block.removeprefix(BOM) if start == 0 else block[line:]
    # Without a line to begin at, the block may begin within a character, as it may end within one.
    require_text(path, block)
    inside = next((at for at, byte in enumerate(block[:4]) if byte & 0xC0 != 0x80), 0)
    try:
        return _unix_lines(codecs.getincrementaldecoder("utf-8")().decode(block[inside:]))
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"the {count} bytes from byte {start}", error) from error


def _from_all(
    path: Path, file: IO[bytes], tokenizer: TextTokenizer, count: int, length: int, seed: int
) -> list[TokenSequence]:
    """Draws from all windows of the text."""
    tokens = 0

    def counted() -> Iterator[list[int]]:
        nonlocal tokens
        before = ""
        for piece in _pieces(path, file):
            ids = tokenizer.encode_text(piece, before)
            before = piece[-BEFORE_CHARACTERS:]
            tokens += len(ids)
            yield ids

    found, available = sampled(_split(counted(), tokenizer, length), count, seed)
    if available < count:
        raise CalibrationError(
            f"{path}: {count} sequences of {length} tokens are asked for, its {tokens} tokens "
            f"make {available}; give more text, or lower sequence_length or sequences"
        )
    return found


def _pieces(path: Path, file: IO[bytes]) -> Iterator[str]:
    """Yields the whole text in pieces that end with a line if they can."""
    file.seek(0)
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    rest, number = "", 0
    while True:
        block = file.read(PIECE_BYTES)
        number += 1
        try:
            text = rest + utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise not_utf8(path, f"its block {number} of {PIECE_BYTES} bytes", error) from error
        if not block:
            break
        require_text(path, block)
        cut = max(text.rfind("\n") + 1, 0) or max(text.rfind(" "), 0) or len(text)
        yield _unix_lines(text[:cut])
        rest = text[cut:]
    if text:
        yield _unix_lines(text)


def _unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _split(
    pieces: Iterator[list[int]] | list[list[int]], tokenizer: TextTokenizer, length: int
) -> Iterator[TokenSequence]:
    """Yields windows of the tokens of pieces of a text; what is left at the end is dropped."""
    rest: list[int] = []
    for ids in pieces:
        rest += ids
        at = 0
        while True:
            first, bos = who_adds_bos(rest[at : at + length], tokenizer.special, rendered=False)
            inside = max(1, length - len(first))
            if len(rest) - at < inside:
                break
            tokens = [*first, *rest[at : at + inside]]
            yield TokenSequence(tokens[:length], len(first), bos)
            at += inside
        del rest[:at]
