"""The points of a sweep that are worth taking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def front(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points that no other beats in bytes and accuracy both, by bytes."""
    found: list[Mapping[str, Any]] = []
    for point in sorted(points, key=lambda p: (p["weights_bytes"], -(p["mean_exact_match"] or 0))):
        if not found or (point["mean_exact_match"] or 0) > (found[-1]["mean_exact_match"] or 0):
            found.append(point)
    return found
