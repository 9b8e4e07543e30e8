"""Points of a sweep that are worth taking."""

from __future__ import annotations

from collections.abc import Sequence

from moe_export.artifacts.sweep import Point


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other beats in both bytes and accuracy, by bytes."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.weights_bytes, -(p.mean_exact_match or 0))):
        if not best or (point.mean_exact_match or 0) > (best[-1].mean_exact_match or 0):
            best.append(point)
    return best
