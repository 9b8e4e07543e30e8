"""Token sequences that importance is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import JsonArtifact, Record, load_tensors, save_tensors

CALIBRATION_FILE = "calibration.safetensors"


class CalibrationSource(Record):
    """Token sequences from one source.

    Attributes:
        name: name of the source in the recipe.
        sequences: number of sequences.
        tokens: number of their tokens.
        truncated_sequences: sequences that were cut at the recipe's length.
        tokens_sha256: SHA-256 of all token ids as int32, in hex.
    """

    name: str
    sequences: int
    tokens: int
    truncated_sequences: int
    tokens_sha256: str


class CalibrationSummary(JsonArtifact):
    """Counts and digests of the calibration set, made by the calibrate stage.

    Attributes:
        sequences: number of sequences.
        tokens: number of their tokens.
        seed: seed of the recipe.
        sources: counts of each source, in the order of the recipe.
    """

    FILE = "calibration.json"

    sequences: int
    tokens: int
    seed: int
    sources: tuple[CalibrationSource, ...]


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
