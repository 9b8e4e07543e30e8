"""Text from outside, made fit for a terminal or a page."""

from __future__ import annotations

import unicodedata

_UNSAFE = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode: control characters, lone surrogates, ends of lines and paragraphs."""

_REORDERING = frozenset("\u061c\u200e\u200f") | {
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
}
"""Characters that change the order in which others are shown."""

_MARK = "\ufeff"
"""Byte order mark, which is not seen and belongs to no text."""


def printable(text: str, keep: str = "") -> str:
    r"""Writes characters that act on a terminal, or break a line, as Python's escapes.

    Args:
        text: any text.
        keep: characters that stay as they are, such as line ends.

    >>> printable("a\x1b[31m\nb"), printable("a\nb\r", keep="\n")
    ('a\\x1b[31m\\nb', 'a\nb\\r')
    >>> printable("a\ufeffb")
    'a\\ufeffb'
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(
        character if character in keep or not is_unsafe(character) else _escape(character)
        for character in text
    )


def is_unsafe(character: str) -> bool:
    """True if a character acts on a terminal, breaks a line, or is not seen or encoded."""
    is_acting = character in _REORDERING or character == _MARK
    return is_acting or unicodedata.category(character) in _UNSAFE


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
