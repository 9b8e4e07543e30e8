"""Limits of the fitting methods, which predictions need without loading torch."""

from __future__ import annotations

SMALL_MODEL_BYTES = 2 << 30
"""Largest size in float32 of a model that stays in memory during repeated passes."""
