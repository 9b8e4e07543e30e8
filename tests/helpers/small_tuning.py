"""Settings of a small tuning, for the tests of the tune stage."""

from __future__ import annotations

from typing import Any

from moe_export.recipe import Source, TuneSettings

SOURCES = (Source(demo="sums"), Source(demo="strings"))


def tune_settings(method: str, **changes: Any) -> TuneSettings:
    """Six steps on 60 documents of the demo's tasks."""
    of = {
        "method": method,
        "sources": SOURCES,
        "documents": 60,
        "steps": 6,
        "sequence_length": 64,
        "batch_tokens": 128,
        "learning_rate": 3e-3,
        "held_out": 0.1,
    }
    return TuneSettings.model_validate(of | changes)
