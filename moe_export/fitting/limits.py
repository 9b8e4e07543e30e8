"""Limits of the fitting methods, which predictions need without loading torch."""

from __future__ import annotations

SMALL_MODEL_BYTES = 2 << 30
"""Largest size in float32 of a model that stays in memory during repeated passes."""

DIMENSIONS_AT_ONCE = 2048
"""Most kept dimensions of a layer whose experts refitting solves for together."""

SWEEPS = 3
"""Number of times that refitting solves for every expert of a layer that keeps more."""

FIT_STATES = 4
"""Hidden states of a token in memory during fitting: input, wanted and missing output of a block,
and those of a part of the tokens."""

STATES_AT_ONCE = 4
"""Hidden states of a token that fitting keeps on the disk: two streams before and after a layer."""
