"""The variants that one run exports, a folder each, in the order that they are shown in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

BASELINE, PRUNED, QUANTIZED = "baseline", "pruned", "quantized"

VARIANTS = (BASELINE, PRUNED, QUANTIZED)

PLANNED = {BASELINE: "before", PRUNED: "after", QUANTIZED: "quantized"}
"""Variant to the name that its bytes have in `plan.json`."""


def exported(export: Path) -> dict[str, Path]:
    """The variants in the folder of the export stage; the last one is the product."""
    return {name: export / name for name in VARIANTS if (export / name).is_dir()}


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once: the baseline, what is done to it step by step, then others by name."""
    return sorted(
        set(names),
        key=lambda name: (VARIANTS.index(name) if name in VARIANTS else len(VARIANTS), name),
    )
