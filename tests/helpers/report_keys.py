"""The keys of a JSON value, as docs/reference/report.md writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "report.md"

VARYING = ("settings", "versions")
"""Keys whose content depends on the recipe or on what is installed."""


def paths_of(value: Any, path: str = "") -> Iterator[str]:
    """Every key below a value; lists are `[]`, and a list of plain values is its key alone."""
    if isinstance(value, dict) and path not in VARYING:
        for key, item in value.items():
            below = f"{path}.{key}".removeprefix(".")
            if not (isinstance(item, list) and item and isinstance(item[0], dict)):
                yield below
            yield from paths_of(item, below)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from paths_of(item, f"{path}[]")


def documented(heading: str) -> set[str]:
    """The keys in the table under a heading of docs/reference/report.md."""
    section = DOCS.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def of_section(name: str) -> set[str]:
    """The documented keys of a section of report.json, which not every report has."""
    return {key for key in documented("report.json") if key.split(".")[0] == name}
