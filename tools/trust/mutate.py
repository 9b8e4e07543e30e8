"""Changes of files, drawn at random: of bytes, of text, and of values in JSON."""

from __future__ import annotations

import copy
import json
import math
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    "x",
    "12",
    "false",
    "../../etc/passwd",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "\x00",
    "ſ" * 300,
    -1,
    0,
    1,
    2,
    3,
    7,
    255,
    2**31,
    2**63,
    10**400,
    -(10**9),
    0.5,
    2.5,
    -0.0,
    1e308,
    1e-320,
    math.inf,
    -math.inf,
    math.nan,
    [],
    [[]],
    [None],
    [1, 2, 3],
    ["a"] * 50,
    {},
    {"a": 1},
    {"a": {"b": [1, {"c": None}]}},
)
"""Values of every kind, most of them wrong wherever they are put."""

INSERTS = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\r\n", b'"', b"{", b"}", b"[", b",", b"\\u0000")


def change_json(random: Random, content: Any) -> tuple[Any, str]:
    """Changes one value in plain JSON content.

    Returns:
        The changed copy, and what was changed.
    """
    content = copy.deepcopy(content)
    places = list(_places(content))
    if not places:
        return random.choice(VALUES), "all of it"
    holder, key, path = random.choice(places)
    way = random.randrange(6)
    if way == 0:
        del holder[key]
        return content, f"{path} removed"
    if way == 1:
        _, other, _ = random.choice([place for place in places if place[0] is holder])
        holder[key], holder[other] = holder[other], holder[key]
        return content, f"{path} exchanged with {other}"
    if way == 2 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = _near(random, holder[key])
    else:
        holder[key] = copy.deepcopy(random.choice(VALUES))
    return content, f"{path} = {holder[key]!r:.60}"


def json_bytes(content: Any) -> bytes:
    """JSON of a value; halves of surrogate pairs and infinities are written as they are read."""
    return json.dumps(content, indent=1).encode("utf-8", "surrogatepass")


def change_bytes(random: Random, raw: bytes, most: int = 1 << 62) -> tuple[bytes, str]:
    """Changes the first `most` bytes of a file.

    Returns:
        The changed bytes, and what was changed.
    """
    size = min(len(raw), most)
    at = random.randrange(size) if size else 0
    match random.randrange(8):
        case 0 | 1 | 2:
            bit = 1 << random.randrange(8)
            return raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :], f"bit {bit} of byte {at}"
        case 3:
            return raw[:at], f"cut at {at}"
        case 4:
            piece = random.choice(INSERTS) * random.choice((1, 1, 40))
            return raw[:at] + piece + raw[at:], f"{piece[:8]!r} put in at {at}"
        case 5:
            end = min(len(raw), at + random.choice((1, 8, 100)))
            return raw[:at] + raw[end:], f"bytes {at} to {end} removed"
        case 6:
            length = random.choice((1, 4, 8, 64))
            new = random.choice((b"\x00", b"\xff", b"\x7f", b"9")) * length
            return raw[:at] + new + raw[at + length :], f"{length} bytes at {at} set to {new[:1]!r}"
        case _:
            end = min(len(raw), at + 50)
            return raw[:end] + raw[at:end] + raw[end:], f"bytes {at} to {end} doubled"


def _near(random: Random, number: float) -> float:
    return random.choice((number + 1, number - 1, -number, number * 2, number / 2, number * 10**6))


def _places(content: Any, path: str = "") -> Any:
    """Yields holder, key and path of every value."""
    if isinstance(content, dict):
        keys: Any = content.keys()
    elif isinstance(content, list):
        keys = range(min(len(content), 20))
    else:
        return
    for key in list(keys):
        inner = f"{path}.{key}" if path else str(key)
        yield content, key, inner
        yield from _places(content[key], inner)
