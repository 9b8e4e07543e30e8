"""Scores of every expert dimension."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import load_tensors, save_tensors

IMPORTANCE_FILE = "importance.safetensors"


@dataclass(frozen=True)
class Importance:
    """What the importance stage found.

    Attributes:
        scores: score name to, per layer, float64 [R], the rows of the shared expert last if it was
            scored; +inf where nothing is known.
        tokens_per_expert: per layer, int64 [E]: calibration tokens routed to each expert, without
            the shared one.
    """

    scores: dict[str, list[NDArray[np.float64]]]
    tokens_per_expert: list[NDArray[np.int64]]


def save_importance(folder: Path, importance: Importance) -> None:
    """Writes `importance.safetensors`: `layers.{l}.{score}` and `layers.{l}.tokens_per_expert`."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer, tokens in enumerate(importance.tokens_per_expert):
        tensors[f"layers.{layer}.tokens_per_expert"] = tokens
        for score, layers in importance.scores.items():
            tensors[f"layers.{layer}.{score}"] = layers[layer]
    save_tensors(folder / IMPORTANCE_FILE, tensors)


def load_importance(folder: Path) -> Importance:
    """Reads `importance.safetensors`.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    tensors = load_tensors(folder / IMPORTANCE_FILE, ("layers.0.tokens_per_expert",))
    layers = range(sum(name.endswith(".tokens_per_expert") for name in tensors))
    names = sorted(
        name.removeprefix("layers.0.") for name in tensors if name.startswith("layers.0.")
    )
    scores = {
        name: [tensors[f"layers.{layer}.{name}"] for layer in layers]
        for name in names
        if name != "tokens_per_expert"
    }
    return Importance(scores, [tensors[f"layers.{layer}.tokens_per_expert"] for layer in layers])
