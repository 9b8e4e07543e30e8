"""Values of fields: those that are text, and names of the others for messages."""

from __future__ import annotations

import json
import math
from typing import Any


def as_text(value: Any) -> str | None:
    """Returns text as it is and a number as JSON writes it; None for anything else.

    >>> [as_text(value) for value in ("a", 2, 0.5, True, None, float("nan"))]
    ['a', '2', '0.5', None, None, None]
    """
    if _is_number(value):
        return json.dumps(value)
    return value if isinstance(value, str) else None


def kind(value: Any) -> str:
    """Name of a value's kind, such as `a list`.

    >>> [kind(value) for value in (None, True, [1], {})]
    ['null', 'true', 'a list', 'an object']
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names = {str: "text", list: "a list", dict: "an object", int: "a number", float: "a number"}
    return names.get(type(value), f"of type {type(value).__name__}")


def _is_number(value: Any) -> bool:
    """True for what JSON calls a number, of any size; infinities and NaN are none."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole or (isinstance(value, float) and math.isfinite(value))
