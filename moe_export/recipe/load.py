"""Reading a recipe file: every error names the file, the line, the key and, for a misspelt key, the
nearest right one.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moe_export.errors import RecipeError
from moe_export.recipe.reader import MOST_LEVELS, read_file, read_yaml
from moe_export.recipe.recipe import Recipe
from moe_export.system.text import is_unsafe, printable


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a YAML recipe and applies `a.b=c` overrides.

    Raises:
        RecipeError: the file cannot be read, or a key or value is wrong.
    """
    content, node = read_file(path)
    if not isinstance(content, dict):
        raise RecipeError(f"{path}:1: expected sections such as 'model:' and 'plan:'")
    return _validated(content, overrides, str(path), node)


def parse_recipe(content: Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Recipe:
    """Checks a recipe given as a mapping and applies `a.b=c` overrides.

    Raises:
        RecipeError: a key or value is wrong.
    """
    return _validated(deepcopy(dict(content)), overrides, "recipe", None)


def _validated(
    content: dict[str, Any], overrides: tuple[str, ...], name: str, node: yaml.Node | None
) -> Recipe:
    """The recipe of some content; errors begin with its name, and the line if it has lines."""
    for override in overrides:
        _apply(content, override)
    _check_values(content, name, node)
    try:
        return Recipe.model_validate(_tuples(content))
    except ValidationError as error:
        found = error.errors()
        # A misspelt key is the cause where another one is missing.
        misspelt = (each for each in found if each["type"] == "extra_forbidden")
        raise RecipeError(_sentence(name, node, next(misspelt, found[0]))) from error


def _apply(content: dict[str, Any], override: str) -> None:
    """Sets one dotted key of a recipe; a number addresses an entry of a list."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise RecipeError(f"--set {override}: expected KEY=VALUE, such as plan.keep=0.4")
    value, _ = read_yaml(text, f"--set {override}")
    *parents, last = dotted.split(".")
    if len(parents) > MOST_LEVELS:
        raise RecipeError(f"--set {override}: no key lies {len(parents)} sections deep")
    place: Any = content
    for key in parents:
        if isinstance(place, list) and _is_entry(key, place):
            place = place[int(key)]
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            raise RecipeError(f"--set {override}: there is no {key!r} to set something in")
    if isinstance(place, list) and _is_entry(last, place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RecipeError(f"--set {override}: {last!r} cannot be set there")


def _is_entry(key: str, entries: list[Any]) -> bool:
    return key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < len(entries)


def _check_values(
    value: Any, name: str, node: yaml.Node | None, location: tuple[int | str, ...] = ()
) -> None:
    """Stops at text with control characters, and at numbers that are not finite."""
    if len(location) > MOST_LEVELS:
        raise RecipeError(f"{name}: it nests more than {MOST_LEVELS} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            _check_values(item, name, node, (*location, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_values(item, name, node, (*location, number))
    elif isinstance(value, str) and any(map(is_unsafe, value)):
        raise RecipeError(
            f"{_where(name, node, location)}{_key(location)!r} is '{printable(value)}', with a "
            "character that is not printable; write it without"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(
            f"{_where(name, node, location)}{_key(location)!r} is {value}, expected a finite "
            "number; leave the key out for its default"
        )


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _where(name: str, node: yaml.Node | None, location: tuple[int | str, ...]) -> str:
    # Sections that disagree have no line of their own; the reason names their keys.
    line = _line(node, location)
    return f"{name}: " if line is None else f"{name}:{line}: "


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return value


def _sentence(name: str, node: yaml.Node | None, error: ErrorDetails) -> str:
    location = error["loc"]
    key, where = _key(location), _where(name, node, location)
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.0)
        return f"{where}unknown key {key!r}; the nearest known key is {near[0]!r}"
    if error["type"] == "missing":
        return f"{where}{key!r} is missing; it must be given"
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
        return f"{where}{key + ': ' if key else ''}{reason}"
    return f"{where}{key!r} is {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _line(node: yaml.Node | None, location: tuple[int | str, ...]) -> int | None:
    """The line of the deepest part of a location that the file holds, counted from 1.

    None if it holds no part, such as for a section that is missing or was set by an override.
    """
    line = None
    for part in location:
        if isinstance(node, yaml.MappingNode):
            entry = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if entry is None:
                break
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that a section at a location may have."""
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        for name, field in model.model_fields.items():
            if (field.alias or name) == part:
                model = _section_type(field.annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The section class in an annotation such as `tuple[Task, ...]` or `PlanSettings | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        section = _section_type(argument)
        if section is not None:
            return section
    return None
