"""Token sequences that importance is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import load_tensors, save_tensors

CALIBRATION_FILE = "calibration.safetensors"


@dataclass(frozen=True)
class Calibration:
    """Token sequences of unequal length, end to end.

    Attributes:
        tokens_N: int32, BOS included where the tokenizer adds one.
        offsets_S1: int64 [S + 1]; sequence s is tokens offsets[s] to offsets[s + 1].
        prompt_S: int32, leading tokens of each sequence that are its prompt (0: none).
        source_S: int32, index of the source each sequence came from.
    """

    tokens_N: NDArray[np.int32]
    offsets_S1: NDArray[np.int64]
    prompt_S: NDArray[np.int32]
    source_S: NDArray[np.int32]

    def sequences(self) -> list[NDArray[np.int32]]:
        """The token ids of each sequence."""
        return np.split(self.tokens_N, self.offsets_S1[1:-1])


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Writes `calibration.safetensors`."""
    save_tensors(
        folder / CALIBRATION_FILE,
        {
            "tokens": calibration.tokens_N,
            "offsets": calibration.offsets_S1,
            "prompt": calibration.prompt_S,
            "source": calibration.source_S,
        },
    )


def load_calibration(folder: Path) -> Calibration:
    """Reads `calibration.safetensors`.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    tensors = load_tensors(folder / CALIBRATION_FILE, ("tokens", "offsets", "prompt", "source"))
    return Calibration(tensors["tokens"], tensors["offsets"], tensors["prompt"], tensors["source"])


def evenly_chosen(sequences: Sequence[NDArray[np.int32]], tokens: int) -> list[NDArray[np.int32]]:
    """As many sequences, evenly spread, as have at most so many tokens; at least one.

    >>> [len(s) for s in evenly_chosen([np.zeros(n, np.int32) for n in (3, 4, 5, 6)], 10)]
    [3, 5]
    """
    every = 1
    while every < len(sequences) and sum(map(len, sequences[::every])) > tokens:
        every += 1
    return list(sequences[::every])
