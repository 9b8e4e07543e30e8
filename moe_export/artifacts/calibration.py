"""The calibration set: token sequences that importance is measured on, and their origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moe_export.artifacts.base import (
    JsonArtifact,
    Record,
    load_tensors,
    require_tensors,
    save_tensors,
)


class CalibrationSource(Record):
    """Token sequences from one source.

    Attributes:
        name: name of the source in the recipe.
        sequences: number of sequences.
        tokens: number of their tokens.
        bos: origin of the BOS tokens: `template`, `text`, `tokenizer` or `nobody`, or several of
            them with commas between. None in files of older versions.
        truncated_sequences: sequences that were cut at the recipe's length.
        dropped_documents: documents that were left out, as their prompts have no room for an
            answer.
        tokens_sha256: SHA-256 of all token ids as int32, in hex.
        weight: weight of the source in the recipe; None if the recipe gives none, so that every
            source weighs by its tokens.
        held_out_sequences: further sequences on which rankings are compared; 0 if the source is so
            small that they are compared on its calibration sequences. None without a comparison.
    """

    name: str
    sequences: int
    tokens: int
    bos: str | None = None
    truncated_sequences: int
    dropped_documents: int
    tokens_sha256: str
    weight: float | None
    held_out_sequences: int | None = None


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

    Legend: N tokens of all sequences, S sequences, K sources.

    Attributes:
        FILE: name of the file in the stage's folder.
        tokens_N: token ids, int32, BOS included if the tokenizer adds one.
        offsets_S1: int64 [S + 1]; sequence s is tokens `offsets[s]` to `offsets[s + 1]`.
        prompt_S: number of leading tokens that are the prompt, int32; 0 if there is none.
        source_S: index of the source of each sequence, int32.
        weight_K: weight of each source in scores, float64; empty if sources weigh by their tokens.
    """

    FILE: ClassVar[str] = "calibration.safetensors"

    tokens_N: NDArray[np.int32]
    offsets_S1: NDArray[np.int64]
    prompt_S: NDArray[np.int32]
    source_S: NDArray[np.int32]
    weight_K: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def save(self, folder: Path) -> None:
        """Writes the file into a folder.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        tensors = (self.tokens_N, self.offsets_S1, self.prompt_S, self.source_S, self.weight_K)
        save_tensors(folder / self.FILE, dict(zip(_DTYPES, tensors, strict=True)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the file from a folder.

        Raises:
            ArtifactError: the file is missing or damaged.
        """
        path = folder / cls.FILE
        tensors = load_tensors(path)
        require_tensors(path, tensors, _DTYPES)
        return cls(*(tensors[name] for name in _DTYPES))

    def sequences(self) -> list[NDArray[np.int32]]:
        """Returns the token ids of each sequence."""
        return np.split(self.tokens_N, self.offsets_S1[1:-1])

    def thinned(self, tokens: int) -> Calibration:
        """Returns the calibration set with evenly spread sequences, at least one, that have at most
        that many tokens together.
        """
        chosen_S = np.arange(len(self.prompt_S))[:: _every(self.sequences(), tokens)]
        sequences = [self.sequences()[s] for s in chosen_S]
        return replace(
            self,
            tokens_N=np.concatenate(sequences),
            offsets_S1=np.cumsum([0, *map(len, sequences)], dtype=np.int64),
            prompt_S=self.prompt_S[chosen_S],
            source_S=self.source_S[chosen_S],
        )

    def sample(self, tokens: int) -> list[NDArray[np.int32]]:
        """Returns evenly spread sequences with at most that many tokens together, at least one."""
        return evenly_chosen(self.sequences(), tokens)


class HeldOut(Calibration):
    """Sequences of the same sources that importance is not measured on, to compare rankings.

    Attributes:
        FILE: name of the file in the stage's folder.
    """

    FILE: ClassVar[str] = "held_out.safetensors"


_DTYPES: dict[str, DTypeLike] = {
    "tokens": np.int32,
    "offsets": np.int64,
    "prompt": np.int32,
    "source": np.int32,
    "weight": np.float64,
}
"""Dtypes of the tensors by name, in the order of the attributes."""


def evenly_chosen(sequences: Sequence[NDArray[np.int32]], tokens: int) -> list[NDArray[np.int32]]:
    """Chooses every n-th sequence, with the least n for which they have at most `tokens` tokens.

    The first sequence is always chosen.

    >>> [len(s) for s in evenly_chosen([np.zeros(n, np.int32) for n in (3, 4, 5, 6)], 10)]
    [3, 5]
    """
    return list(sequences[:: _every(sequences, tokens)])


def _every(sequences: Sequence[NDArray[np.int32]], tokens: int) -> int:
    """Least n for which every n-th sequence has at most `tokens` tokens, if there is one."""
    every = 1
    while every < len(sequences) and sum(map(len, sequences[::every])) > tokens:
        every += 1
    return every
