"""Recipes: the schema walked with wrong values, damaged YAML, and `--set`."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any

import yaml

from moe_export.recipe import Recipe
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.kinds.base import RIGHT, Case, Kind, copy_model, write_recipe
from tools.trust.mutate import VALUES, change_bytes
from tools.trust.sandbox import Outcome

RAW = (
    "&a {model: *a}",
    "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]",
    "!!python/object/apply:os.system ['true']",
    "a: !!int x",
    "? [1, 2]\n: 3",
    "<<: {plan: {keep: 0.5}}",
    "--- {}\n--- {}",
    "plan: {keep: 0.5, keep: 0.6}",
    "a: 0x_",
    "a: 2020-13-45",
    "a: 1:60:60",
    "a: .inf",
    "a: 1e999",
    "a: 9" + "9" * 5000,
    "[" * 3000 + "]" * 3000,
    "a: |\n  x\n b: y",
    "%YAML 9.9\n---\na: 1",
    'a: "\\uD800"',
    "\ufeffplan: {keep: 0.5}",
)
"""Pieces of YAML that are put into recipes."""

TEXTS = (
    ".inf",
    ".nan",
    "1e999",
    "0o17",
    "1_000",
    "yes",
    "~",
    "[1",
    "{a: 1}",
    "2020-13-45",
    "5MiB",
    "*a",
)
"""Values of `--set`."""


class Recipes(Kind):
    """Recipes; `show` must print every value that was given of those that are accepted."""

    NAME = "recipe"
    WHAT = "wrong values at every key of the schema, YAML, and --set"
    SHARE = 2.4

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._keys = sorted(keys_of(Recipe.model_json_schema()))

    def prepare(self) -> None:
        tiny_checkpoint(self.base / "model")

    def case(self, random: Random, place: Path) -> Case:
        write_recipe(place)
        path = place / "recipe.yaml"
        content = yaml.safe_load(path.read_text())
        options: list[str] = []
        way = random.randrange(10)
        if way < 6:
            key, value = random.choice(self._keys), _value(random)
            _put(content, key, value)
            path.write_text(yaml.safe_dump(content), encoding="utf-8", errors="surrogatepass")
            what = f"{'.'.join(map(str, key))} = {value!r:.60}"
        elif way < 8:
            raw, what = _damaged(random, path.read_bytes())
            path.write_bytes(raw)
            content = None
        else:
            what = _override(random, self._keys)
            options, content = ["--set", what], None
        commands = [["show", path.name, *options]]
        if random.random() < 0.3:
            copy_model(self.base / "model", place)
            commands.append(["run", path.name, "--dry-run", *options])
        return Case(what, commands, lambda outcomes: _judge(content, outcomes))


def keys_of(schema: dict[str, Any]) -> set[tuple[str | int, ...]]:
    """Paths of all keys of a JSON schema; lists have an entry 0."""
    found: set[tuple[str | int, ...]] = set()
    _walk(schema, schema["$defs"], (), found)
    return found


def _walk(part: Any, parts: Any, path: tuple[str | int, ...], found: set[Any]) -> None:
    if len(path) > 6:
        return
    if "$ref" in part:
        part = parts[part["$ref"].rsplit("/", 1)[-1]]
    for other in part.get("anyOf", []):
        _walk(other, parts, path, found)
    for key, inner in part.get("properties", {}).items():
        found.add((*path, key))
        _walk(inner, parts, (*path, key), found)
    if isinstance(part.get("items"), dict):
        found.add((*path, 0))
        _walk(part["items"], parts, (*path, 0), found)


def _value(random: Random) -> Any:
    value = random.choice(VALUES)
    # yaml has no dumper for an integer that Python itself does not print.
    return value if not isinstance(value, int) or abs(value) < 10**300 else 10**40


def _put(content: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key, following in zip(path, (*path[1:], None), strict=True):
        new: Any = value if following is None else [{}] if following == 0 else {}
        if isinstance(content, list) and isinstance(key, int):
            content[key : key + 1] = [new if following is None or not content else content[key]]
        elif following is None or not isinstance(content.get(key), dict | list):
            content[key] = new
        content = content[key]


def _damaged(random: Random, raw: bytes) -> tuple[bytes, str]:
    if random.random() < 0.5:
        return change_bytes(random, raw)
    piece = random.choice(RAW)
    lines = raw.decode().splitlines()
    at = random.randrange(len(lines) + 1)
    return "\n".join([*lines[:at], piece, *lines[at:]]).encode(), f"{piece[:40]!r} at line {at + 1}"


def _override(random: Random, keys: list[tuple[str | int, ...]]) -> str:
    key = ".".join(map(str, random.choice(keys)))
    if random.random() < 0.2:
        key = random.choice(("", ".", "a", "plan.", key + ".x", key[:-1], "plan." * 60, "\x00"))
    value = random.choice((*TEXTS, str(random.choice(VALUES[:30]))[:200]))
    text = f"{key}={value}" if random.random() < 0.95 else key
    return text.replace("\x00", "\u2400")  # no word of a command line can hold it


def _judge(given: Any, outcomes: list[Outcome]) -> str:
    if given is None:
        return RIGHT
    shown = yaml.safe_load(outcomes[0].out)
    lost = next(_differences(given, shown, ""), None)
    return f"{lost} is shown as another value" if lost else RIGHT


def _differences(given: Any, shown: Any, path: str) -> Any:
    """Yields the places of values that were given and are not shown."""
    if given is None:
        return
    if isinstance(given, dict) and isinstance(shown, dict):
        for key, value in given.items():
            yield from _differences(value, shown.get(key), f"{path}.{key}")
    elif isinstance(given, list | tuple) and isinstance(shown, list):
        if len(given) != len(shown):
            yield path
        for number, pair in enumerate(zip(given, shown, strict=False)):
            yield from _differences(*pair, f"{path}.{number}")
    elif not _equal(given, shown):
        yield path


def _equal(given: Any, shown: Any) -> bool:
    if isinstance(given, bool) or isinstance(shown, bool):
        return given is shown
    numbers = isinstance(given, int | float) and isinstance(shown, int | float)
    return math.isclose(given, shown, rel_tol=1e-15) if numbers else bool(given == shown)
