"""Weights of the calibration sources in scores.

Legend: S sequences, K sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.scores.base import DataScore


@dataclass(frozen=True)
class SourceWeights:
    """Weight of a source's tokens in scores, by what a score is a mean over.

    With n_k the tokens of source k and n those of all, a mean over tokens is

        sum over k of share[k] * (sum over tokens t of k of value[t]) / n_k
            = sum over k of weight[k] * (sum over tokens t of k of value[t]) / n

    with weight[k] = share[k] * n / n_k. The shares are those of the recipe's weights, or n_k / n if
    the recipe gives none, in which case all weights are 1. Within a source all tokens weigh alike.
    Targets are counted apart, since the first token of a sequence has no loss.

    Attributes:
        source_S: Number of each sequence's source, int64.
        targets_S: Number of targets of each sequence, float64.
        token_weight_K: Weight of each token of a source, float64; 0 without sequences.
        target_weight_K: Weight of each target of a source, float64; 0 without sequences.
    """

    source_S: NDArray[np.int64]
    targets_S: NDArray[np.float64]
    token_weight_K: NDArray[np.float64]
    target_weight_K: NDArray[np.float64]

    @classmethod
    def of(cls, calibration: Calibration) -> Self:
        """Weights of the sources of a calibration set."""
        source_S = calibration.source_S.astype(np.int64)
        length_S = np.diff(calibration.offsets_S1).astype(np.float64)
        counts = (length_S, length_S - 1)
        weights = (_weights(calibration.weight_K, source_S, count_S) for count_S in counts)
        return cls(source_S, length_S - 1, *weights)

    def of_score(self, score: DataScore) -> NDArray[np.float64]:
        """Factor of each source's contribution to a score, float64 [K]."""
        if score.mean_over == "sequences":
            return np.ones_like(self.token_weight_K)
        return self.target_weight_K if score.mean_over == "targets" else self.token_weight_K


def _weights(
    weight_K: NDArray[np.float64], source_S: NDArray[np.int64], count_S: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weights whose mean over all that is counted is 1."""
    count_K = np.bincount(source_S, count_S, minlength=len(weight_K))
    if not len(weight_K):
        return np.ones_like(count_K)
    share_K = weight_K * (count_K > 0)
    weights: NDArray[np.float64] = share_K / share_K.sum() * count_K.sum() / np.maximum(count_K, 1)
    return weights
