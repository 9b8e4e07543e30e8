"""A page of results: docs/results/NAME.md, and its figures in docs/results/data/NAME.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from moe_export.artifacts.base import JsonArtifact

ArtifactT = TypeVar("ArtifactT", bound=JsonArtifact)

RESULTS = Path(__file__).parents[2] / "docs" / "results"

DECIMALS = 6
"""Decimals of floats in the data: more are noise, and make the committed files long."""


def write_page(name: str, data: Any, markdown: str) -> None:
    """Writes a page and its data.

    Args:
        name: Name of both files.
        data: Plain values, rounded by `rounded`; None for a page without data.
        markdown: Content of the page.
    """
    if data is not None:
        text = json.dumps(data, indent=1) + "\n"
        data_file(name).write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(markdown, encoding="utf-8")


def read_data(name: str) -> Any:
    """The figures of a page as they were committed."""
    return json.loads(data_file(name).read_text(encoding="utf-8"))


def artifact(kind: type[ArtifactT], data: Any) -> ArtifactT:
    """Makes an artifact from the figures of a page, which are its content."""
    return kind.from_plain({key: value for key, value in data.items() if key != "schema"})


def plain(content: JsonArtifact) -> dict[str, Any]:
    """Returns the content of an artifact as its file has it."""
    return {"schema": content.VERSION} | content.plain()


def data_file(name: str) -> Path:
    """The file that holds the figures of a page."""
    return RESULTS / "data" / f"{name}.json"


def rounded(value: Any) -> Any:
    """Plain values with every float to `DECIMALS` decimals.

    >>> rounded({"kl_nats": [0.12345678, 1]})
    {'kl_nats': [0.123457, 1]}
    """
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value
