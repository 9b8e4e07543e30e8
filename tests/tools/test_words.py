"""Tests of the check for openings of docstrings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import words

PLANTED = '''"""{opening} the module gives."""

WIDTH = 3
"""Columns of a panel."""


def product(x, y):
    """Multiplies two numbers.

    Args:
        x: a number.
        y: {argument} the other one.

    Returns:
        The product.
    """
    return x * y
'''
PLAIN = PLANTED.format(opening="Numbers that", argument="a number, unlike")


def test_a_plain_module_passes() -> None:
    assert words.findings(PLAIN) == []


@pytest.mark.parametrize("opening", words.OPENINGS)
def test_a_docstring_that_opens_with_a_refused_word_is_found(opening: str) -> None:
    [(line, sentence)] = words.findings(PLAIN.replace("Numbers that", opening))
    assert line == 1
    assert repr(opening) in sentence


@pytest.mark.parametrize("word", [*words.HEADLESS, "What"])
def test_an_argument_without_a_noun_is_found_on_its_line(word: str) -> None:
    [(line, sentence)] = words.findings(PLAIN.replace("a number, unlike", word))
    assert line == 12
    assert sentence.startswith("y is described by")
    assert repr(word) in sentence


def test_a_result_and_a_constant_without_a_noun_are_found() -> None:
    source = PLAIN.replace("The product.", "Of both.").replace("Columns of", "Which columns has")
    assert [line for line, _ in words.findings(source)] == [4, 15]


@pytest.mark.parametrize("text", ["Whatever a stage raises.", "Offers a place.", "Thatch."])
def test_only_whole_words_are_refused(text: str) -> None:
    assert words.findings(f'"""{text}"""') == []


def test_the_command_names_file_and_line_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(PLANTED.format(opening="What", argument="of"))
    assert words.main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert f"{planted}:1: the docstring opens with 'What'" in shown
    assert f"{planted}:12: y is described by 'of'" in shown
    planted.write_text(PLAIN)
    assert words.main([str(tmp_path)]) == 0
