"""Importance scores of every expert dimension."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moe_export.artifacts.base import load_tensors, require_tensors, save_tensors

TOKENS = "tokens_per_expert"

_SOURCES = "sources."


@dataclass(frozen=True)
class Importance:
    """The scores of a model, made by the importance stage.

    Legend: E routed experts of a layer, R dimensions of all experts of a layer, K sources.

    Attributes:
        FILE: name of the file in the stage's folder; its tensors are named
            `layers.{layer}.{score}`, `layers.{layer}.tokens_per_expert` and `sources.{score}`.
        scores: vectors float64 [R], one per layer, by name of the score. The rows of the
            shared expert are the last if it was scored; +inf means unknown.
        tokens_per_expert: calibration tokens routed to each expert, one int64 [E] per layer.
        source_shares: shares float64 [K] of the sources, in the order of the recipe, in the sum
            over all dimensions, by name of a score of data.
    """

    FILE: ClassVar[str] = "importance.safetensors"

    scores: dict[str, list[NDArray[np.float64]]]
    tokens_per_expert: list[NDArray[np.int64]]
    source_shares: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Writes the file into a folder.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        tensors: dict[str, NDArray[Any]] = {}
        for layer, tokens_E in enumerate(self.tokens_per_expert):
            tensors[_name(layer, TOKENS)] = tokens_E
            for score, layers in self.scores.items():
                tensors[_name(layer, score)] = layers[layer]
        tensors |= {_SOURCES + score: share_K for score, share_K in self.source_shares.items()}
        save_tensors(folder / self.FILE, tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the file from a folder.

        Raises:
            ArtifactError: the file is missing or damaged, or a layer lacks a score.
        """
        path = folder / cls.FILE
        tensors = load_tensors(path)
        layers = range(max(1, sum(name.endswith(f".{TOKENS}") for name in tensors)))
        first = _name(0, "")
        scores = sorted(
            name.removeprefix(first)
            for name in tensors
            if name.startswith(first) and name != _name(0, TOKENS)
        )
        dtypes: dict[str, DTypeLike] = {_name(layer, TOKENS): np.int64 for layer in layers}
        dtypes |= {_name(layer, score): np.float64 for layer in layers for score in scores}
        shares = [name for name in tensors if name.startswith(_SOURCES)]
        dtypes |= dict.fromkeys(shares, np.float64)
        require_tensors(path, tensors, dtypes)
        return cls(
            {score: [tensors[_name(layer, score)] for layer in layers] for score in scores},
            [tensors[_name(layer, TOKENS)] for layer in layers],
            {name.removeprefix(_SOURCES): tensors[name] for name in shares},
        )


def _name(layer: int, what: str) -> str:
    return f"layers.{layer}.{what}"
