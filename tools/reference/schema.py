"""Puts the types of pydantic models into words, from their JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moe_export.recipe import AUTO
from moe_export.scores import SCORES

Schema = Mapping[str, Any]

_NAMES = {
    "integer": "integer",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "object": "mapping",
}
_BOUNDS = {
    "minimum": "≥",
    "ge": "≥",
    "exclusiveMinimum": ">",
    "maximum": "≤",
    "exclusiveMaximum": "<",
}


def type_words(schema: Schema) -> str:
    """The type of a value in words.

    >>> type_words({"type": "integer", "minimum": 1})
    'integer ≥ 1'
    >>> type_words({"anyOf": [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}]})
    '`a`, `b`'
    >>> type_words({"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}})
    'list of number > 0'
    """
    if "anyOf" in schema:
        words = [type_words(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))
    if "$ref" in schema:
        return f"`{schema['$ref'].rsplit('/', 1)[-1]}`"
    if set(schema.get("enum", ())) == set(SCORES):
        return "[score](scores.md)"
    if set(schema.get("enum", ())) == {AUTO, *SCORES}:
        return f"`{AUTO}` or [score](scores.md)"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return _list(schema)
    if isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {type_words(schema['additionalProperties'])}"
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_NAMES.get(schema.get("type", ""), "any value"), ", ".join(bounds)]).strip()


def _list(schema: Schema) -> str:
    if "prefixItems" in schema:
        return f"list of {', '.join(type_words(item) for item in schema['prefixItems'])}"
    return f"list of {type_words(schema.get('items', {}))}"


def value_words(value: Any) -> str:
    """A default as it would be written in a recipe.

    >>> value_words((1, 2)), value_words(None), value_words("float32")
    ('`[1, 2]`', '', '`float32`')
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return f"`{value}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(value_words(item).strip('`') for item in value)}]`"
    return f"`{json.dumps(value)}`"


def row(*cells: str) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
