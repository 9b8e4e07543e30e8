"""The directions between the package, the tools and the tests, held on their sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"moe_export": {"tests", "tools"}, "tools": {"tests"}}
"""Folder to the top-level packages that none of its files imports."""


def sources(folder: str) -> list[Path]:
    """Files of Python, those without a suffix too."""
    named = (ROOT / folder).rglob("*.py")
    scripts = (path for path in (ROOT / folder).glob("*") if path.is_file() and not path.suffix)
    return sorted({*named, *scripts})


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the packages that a file imports, in functions too."""
    packages = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.split(".")[0])
    return packages


def touches_path(tree: ast.AST) -> bool:
    """True if a file reads or changes `sys.path`, by whichever name."""
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    names = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return any(
        node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys"
        for node in attributes
    ) or any(
        node.module == "sys" and any(alias.name == "path" for alias in node.names) for node in names
    )


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_no_file_imports_what_stands_above_it(folder: str) -> None:
    files = sources(folder)
    assert len(files) > 20
    for path in files:
        above = imported(ast.parse(path.read_text())) & FORBIDDEN[folder]
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("folder", ["moe_export", "tools", "tests"])
def test_no_file_puts_a_folder_on_the_path_of_imports(folder: str) -> None:
    for path in sources(folder):
        assert not touches_path(ast.parse(path.read_text())), path.relative_to(ROOT)


@pytest.mark.parametrize("line", ["import sys\nsys.path.insert(0, '.')", "from sys import path"])
def test_a_planted_change_of_the_path_is_seen(line: str) -> None:
    assert touches_path(ast.parse(line))


def test_a_planted_import_is_seen() -> None:
    assert imported(ast.parse("def f():\n    from tests.helpers import cmake")) == {"tests"}
