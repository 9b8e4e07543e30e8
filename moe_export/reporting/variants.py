"""The exported variants of a model, in the order that they are shown in."""

from __future__ import annotations

from collections.abc import Iterable

BASELINE = "baseline"

_ORDER = (BASELINE, "pruned", "quantized", "pruned+quantized")


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once: the baseline, what is done to it step by step, then others by name."""
    return sorted(
        set(names), key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)
    )
