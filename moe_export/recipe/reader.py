"""YAML of recipes: safe, without what a recipe never needs, and within limits.

A key may be given once. An alias counts as often as it is used, so that a few lines cannot stand
for billions of values. Dates are text; 1e-4 is a number, as in YAML 1.2; numbers that YAML 1.1
reads in base 8 or 60, 010 and 1:30, are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from moe_export.errors import RecipeError
from moe_export.system.digests import open_regular
from moe_export.system.text import printable

MOST_BYTES = 1 << 20
MOST_NODES = 20_000
MOST_LEVELS = 40
MOST_DIGITS = 60
"""Limits of a recipe: its length, its keys and values, their nesting, and a number's length."""

NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
DATE = "tag:yaml.org,2002:timestamp"
FLOAT = "tag:yaml.org,2002:float"
EXPONENT = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z")
"""Numbers with an exponent and no point, which PyYAML takes for text."""

OTHER_BASE = re.compile(r"[-+]?0[0-9_]+\Z|.*:")


def read_file(path: Path) -> tuple[Any, yaml.Node | None]:
    """Reads a file with one YAML document, as `read_yaml`.

    Raises:
        RecipeError: the file cannot be read, or as `read_yaml`.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(MOST_BYTES + 1)
        text = raw.decode()
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe") from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: the recipe is not UTF-8 (byte 0x{error.object[error.start]:02x} at "
            f"{error.start}); save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:  # ValueError also for a path with a null character
        raise RecipeError(f"{path}: the recipe cannot be read ({error})") from error
    if len(raw) > MOST_BYTES:
        raise RecipeError(
            f"{path}: it has more than {MOST_BYTES} bytes, expected a recipe; give the path of one"
        )
    return read_yaml(text, str(path))


def read_yaml(text: str, name: str) -> tuple[Any, yaml.Node | None]:
    """Reads one YAML document.

    Args:
        text: the document.
        name: name of the document, with which messages begin.

    Returns:
        The content, and its nodes, which know their lines.

    Raises:
        RecipeError: the document is not valid, or holds something that no recipe may; the message
            has the line.
    """
    try:
        loader = _Loader(text)
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        character = printable(text[error.position])
        raise RecipeError(f"{name}:{line}: the character {character} is not allowed") from error
    try:
        node: yaml.Node | None = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise RecipeError(f"{name}:{line}: {_one_line(error.problem)}") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise RecipeError(
            f"{name}:{loader.line + 1}: not valid YAML ({_one_line(str(error))})"
        ) from error


def _one_line(problem: str | None) -> str:
    return " ".join((problem or "not valid YAML").split())


class _Loader(yaml.SafeLoader):
    """Safe loader that counts what it reads, and refuses what a recipe never needs."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._levels = 0
        self._count = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Reads a node and counts it with everything in it."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        before = self._count
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise ComposerError(None, None, f"it nests more than {MOST_LEVELS} levels", mark)
        if isinstance(event, yaml.AliasEvent):
            self._count += self._size_of(event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._levels -= 1
        self._count += 1
        if self._count > MOST_NODES:
            problem = f"it holds more than {MOST_NODES} values, those of every alias counted"
            raise ComposerError(None, None, problem, mark)
        self._sizes.setdefault(id(node), self._count - before)
        return node

    def _size_of(self, alias: yaml.AliasEvent) -> int:
        """Number of nodes that an alias stands for; 0 if it is unknown, which is an error later."""
        node = self.anchors.get(alias.anchor)
        if node is not None and id(node) not in self._sizes:
            problem = f"the alias {alias.anchor!r} stands for itself"
            mark: Any = alias.start_mark
            raise ComposerError(None, None, problem, mark)
        return self._sizes[id(node)] if node is not None else 0

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Reads a mapping, in which no key may be given twice."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    problem = f"the key {key.value!r} is given twice; remove one of the two"
                    raise ComposerError(None, None, problem, key.start_mark)
                keys.add((key.tag, key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Makes a value of a node; what is wrong with it is said with its line."""
        if node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
            problem = f"a number has {len(node.value)} characters, at most {MOST_DIGITS} are read"
            raise ConstructorError(None, None, problem, node.start_mark)
        if node.tag in NUMBERS and OTHER_BASE.match(node.value):
            problem = (
                f"{_shown(node)} is read in base 8 or 60; write a decimal number without a zero in "
                "front, or text in quotes"
            )
            raise ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            word = node.tag.removeprefix("tag:yaml.org,2002:")
            problem = f"{_shown(node)} is no value of the type {word}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


def _shown(node: yaml.Node) -> str:
    return repr(node.value)[:60] if isinstance(node, yaml.ScalarNode) else "this"


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != DATE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(FLOAT, EXPONENT, list("-+0123456789"))
