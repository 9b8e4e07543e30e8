"""Calibration sequences that weights are fitted to, and those held out from it.

Legend: S sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_export.passes.batches import Batch, batches_of
from moe_export.passes.carried import BATCH_TOKENS

HELD_OUT = 8
"""Number of sequences of which one is held out from fitting."""


@dataclass(frozen=True)
class FitTokens:
    """Calibration sequences with their weights.

    Attributes:
        sequences: Token ids of each sequence, int32.
        weight_S: Weight of each token of a sequence, float64; the mean over tokens is about 1.
    """

    sequences: Sequence[NDArray[np.int32]]
    weight_S: NDArray[np.float64]

    def divided(self) -> tuple[FitTokens, FitTokens]:
        """Sequences to fit to, and every eighth sequence, or the last of fewer, which is held out.

        Nothing is held out of a single sequence.
        """
        count = len(self.sequences)
        every = min(HELD_OUT, count)
        is_held_out_S = (np.arange(count) % every == every - 1) & (count > 1)
        return self._chosen(~is_held_out_S), self._chosen(is_held_out_S)

    def batches(self) -> list[Batch]:
        """Padded batches of the sequences."""
        return batches_of(list(self.sequences), BATCH_TOKENS)

    def weights(self) -> Tensor:
        """Weight of every real token, float32 [T], in the order of the batches."""
        weight_S = torch.from_numpy(self.weight_S).float()
        parts = [weight_S[b.index_B[b.sequence_T[b.real_T]]] for b in self.batches()]
        return torch.cat([torch.zeros(0), *parts])

    def _chosen(self, is_chosen_S: NDArray[np.bool_]) -> FitTokens:
        chosen = [s for s, is_chosen in zip(self.sequences, is_chosen_S, strict=True) if is_chosen]
        return FitTokens(chosen, self.weight_S[is_chosen_S])
