from __future__ import annotations

import sys
import unicodedata

import pytest

from moe_export.system.text import printable


def test_nothing_that_acts_on_a_terminal_is_left() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(everything)
    shown.encode()
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;title\x07b", r"a\x1b]0;title\x07b"),
        ("one\ntwo\r", r"one\ntwo\r"),
        ("\x9b31m", r"\x9b31m"),
        ("left\u202eright", r"left\u202eright"),
        ("\ud800", r"\ud800"),
        ("Größe 模型 🙂", "Größe 模型 🙂"),
    ],
)
def test_such_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_ends_may_be_kept() -> None:
    assert printable("a\n\x1b\tb", keep="\n") == "a\n\\x1b\\tb"
