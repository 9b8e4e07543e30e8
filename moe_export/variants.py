"""Variants of the model that a run exports, one folder each, their files, and names in graphs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

BASELINE, PRUNED, QUANTIZED = "baseline", "pruned", "quantized"

VARIANTS = (BASELINE, PRUNED, QUANTIZED)
"""All variants in the order of reports."""

MODEL_FILE, DATA_FILE = "model.onnx", "model.onnx.data"
"""Files of a variant: its graph, and the weights beside it."""

LOGITS_FROM = "logits_from"
"""Optional input of an exported graph: first position with logits, [1] int64; 0 unless fed."""

PAST_PREFIX = "past_key_values."
"""Beginning of the names of all inputs that carry a state, as in every runtime."""

PRESENT_PREFIX = "present."
"""Beginning of the names of the outputs with the state after the step."""


def present_name(past: str) -> str:
    """Name of the output that belongs to an input with a state.

    >>> present_name("past_key_values.3.key")
    'present.3.key'
    """
    return past.replace(PAST_PREFIX, PRESENT_PREFIX)


def exported(export: Path) -> dict[str, Path]:
    """Folders of the exported variants by name; the last one is the run's final model."""
    return {name: export / name for name in VARIANTS if (export / name).is_dir()}


def ordered(names: Iterable[str]) -> list[str]:
    """Names without repeats: variants in their order, then other names alphabetically."""
    return sorted(
        set(names),
        key=lambda name: (VARIANTS.index(name) if name in VARIANTS else len(VARIANTS), name),
    )
