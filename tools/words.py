"""Finds docstrings and argument lines that open with a word which hides the noun.

python -m tools.words [FILE_OR_FOLDER…]     without arguments: the whole repository

CONTRIBUTING.md has the rules, with pairs of sentences before and after. A docstring may not open
with one of `OPENINGS`. The description of an argument, an attribute or a result may not open with
one of `HEADLESS`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("conftest.py", "moe_export", "tools", "tests", "examples")

OPENINGS = ("What", "Of", "That", "Those", "The same", "Whether", "Where", "How", "Which", "By")
HEADLESS = ("of", "that", "those", "which", "what", "whether", "where", "how", "by")

_OPENING = re.compile(rf"({'|'.join(OPENINGS)})\b")
_ARGUMENT = re.compile(
    rf"\s+([\w*.\[\]`]+(?:, [\w*.\[\]`]+)*):\s+({'|'.join(HEADLESS)})\b", re.IGNORECASE
)
_SECTION = re.compile(r"\s*(Returns|Yields):\s*")
_RESULT = re.compile(rf"\s+({'|'.join(HEADLESS)})\b", re.IGNORECASE)

Finding = tuple[int, str]


def main(arguments: list[str]) -> int:
    """Prints every finding with its file and line; returns 1 if there is any."""
    paths = [Path(argument) for argument in arguments] or [ROOT / name for name in SOURCES]
    count = 0
    for path in python_files(paths):
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        for line, sentence in findings(path.read_text(encoding="utf-8")):
            print(f"{shown}:{line}: {sentence}")
            count += 1
    if count:
        print(f"words: {count} openings to rewrite; see Plain English in CONTRIBUTING.md")
    return 1 if count else 0


def python_files(paths: list[Path]) -> Iterator[Path]:
    """Yields the Python files among some paths, those of a folder in order of name."""
    for path in paths:
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def findings(source: str) -> list[Finding]:
    """Line and complaint for every opening that is refused in a Python source.

    >>> findings("'What this module gives.'")
    [(1, "the docstring opens with 'What'; begin with a noun or a verb")]
    """
    return [
        finding
        for line, text in docstrings(ast.parse(source))
        for finding in (*_opening(line, text), *_headless(line, text))
    ]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yields first line and text of each docstring, those of constants and attributes included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for place, statement in enumerate(node.body):
                follows = isinstance(node.body[place - 1], ast.Assign | ast.AnnAssign)
                text = _text(statement) if place == 0 or follows else None
                if text is not None:
                    yield statement.lineno, text


def _text(statement: ast.stmt) -> str | None:
    """The string that a statement consists of; None for any other statement."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value if isinstance(value, str) else None
    return None


def _opening(line: int, text: str) -> Iterator[Finding]:
    if match := _OPENING.match(text.lstrip()):
        yield line, f"the docstring opens with {match[1]!r}; begin with a noun or a verb"


def _headless(line: int, text: str) -> Iterator[Finding]:
    after_section = ""
    for number, row in enumerate(text.splitlines(), start=line):
        if match := _ARGUMENT.match(row):
            yield number, f"{match[1]} is described by {match[2]!r}; begin with a noun"
        elif after_section and (match := _RESULT.match(row)):
            yield number, f"{after_section} begins with {match[1]!r}; begin with a noun"
        section = _SECTION.fullmatch(row)
        after_section = section[1] if section else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
