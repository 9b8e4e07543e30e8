"""Means over held-out sequences, by source and over the sources, with their standard errors.

Legend: S sequences, K sources.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Divergence:
    """Divergence and loss of a model, summed over the scored tokens of each sequence.

    Attributes:
        kl_S: KL from the unpruned model, nats, float64.
        loss_S: Negative log-likelihood, nats, float64.
        tokens_S: Number of scored tokens, float64.
        source_S: Number of the source, int64.
    """

    kl_S: NDArray[np.float64]
    loss_S: NDArray[np.float64]
    tokens_S: NDArray[np.float64]
    source_S: NDArray[np.int64]


@dataclass(frozen=True)
class SourceMeans:
    """Means per scored token of every source.

    A mean is a sum over tokens by the number of tokens, both over the sequences of a source; its
    error is that of a ratio: with r_s the sum of sequence s less the mean times its tokens, the
    standard deviation of r_s over the square root of the number of sequences and the mean number
    of tokens.

    Attributes:
        mean_K: The means, float64.
        stderr_K: Their standard errors, float64; nan for a source with one sequence.
    """

    mean_K: NDArray[np.float64]
    stderr_K: NDArray[np.float64]

    @classmethod
    def of(cls, value_S: NDArray[np.float64], of: Divergence, sources: int) -> SourceMeans:
        """Means of values that are summed over the tokens of each sequence."""
        pairs = [
            _ratio(value_S[of.source_S == source], of.tokens_S[of.source_S == source])
            for source in range(sources)
        ]
        mean_K, stderr_K = np.array(pairs).T
        return cls(mean_K, stderr_K)

    def over(self, weight_K: NDArray[np.float64]) -> tuple[float, float | None]:
        """Weighted mean over the sources, and its standard error; None if it is not known.

        Args:
            weight_K: Weights, which sum to 1; sources of weight 0 do not count.
        """
        counted_K = weight_K > 0
        stderr = math.sqrt(float(np.square(weight_K * self.stderr_K)[counted_K].sum()))
        mean = float((weight_K * self.mean_K)[counted_K].sum())
        return mean, None if math.isnan(stderr) else stderr


def _ratio(value_S: NDArray[np.float64], tokens_S: NDArray[np.float64]) -> tuple[float, float]:
    """Mean per token and its standard error."""
    mean = float(value_S.sum() / tokens_S.sum())
    if len(value_S) < 2:
        return mean, math.nan
    residual_S = value_S - mean * tokens_S
    return mean, float(residual_S.std(ddof=1) / (math.sqrt(len(value_S)) * tokens_S.mean()))
