"""Differences of two models on the same documents, with their standard errors.

Both models meet the same easy and hard documents. The error of their difference is therefore that
of the differences by document, which is much smaller than the error of either model.

Legend: N documents of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.documents import DocumentsByTask

ERRORS = 2
"""Standard errors that a difference must exceed."""


@dataclass(frozen=True)
class Difference:
    """A quantity of the first model less that of the second, mean over the tasks.

    Attributes:
        value: difference, in the unit of the quantity.
        stderr: standard error of the difference.
    """

    value: float
    stderr: float

    @property
    def is_within_error(self) -> bool:
        """True if the difference may as well be zero."""
        return abs(self.value) <= ERRORS * self.stderr


def kl_difference(first: DocumentsByTask, second: DocumentsByTask) -> Difference:
    """Returns the difference of the mean KL per token, in nats."""
    values, variances = [], []
    for name, ours in first.items():
        tokens_N = np.array(ours.tokens, float)
        gap_N = np.array(ours.kl_nats) - np.array(second[name].kl_nats)
        values.append(float(gap_N.sum() / tokens_N.sum()))
        # The ratio of two sums has the error of its residuals by document.
        variances.append(_variance_of_mean(gap_N - values[-1] * tokens_N) / tokens_N.mean() ** 2)
    return _mean(values, variances)


def match_difference(
    first: DocumentsByTask, second: DocumentsByTask, answered: Sequence[str]
) -> Difference:
    """Returns the difference of the fraction of documents that match exactly.

    Args:
        first: document scores of one model.
        second: document scores of the other model.
        answered: names of the tasks with answers.
    """
    values, variances = [], []
    for name in answered:
        gap_N = np.array(first[name].matches, float) - np.array(second[name].matches, float)
        values.append(float(gap_N.mean()))
        variances.append(_variance_of_mean(gap_N))
    return _mean(values, variances)


def only_one_matches(
    first: DocumentsByTask, second: DocumentsByTask, answered: Sequence[str]
) -> tuple[int, int]:
    """Counts the documents that only the first model has right, and those only the second has."""
    pairs = [
        pair
        for name in answered
        for pair in zip(first[name].matches, second[name].matches, strict=True)
    ]
    return pairs.count((True, False)), pairs.count((False, True))


def _variance_of_mean(values_N: NDArray[np.float64]) -> float:
    return float(values_N.var(ddof=1) / len(values_N)) if len(values_N) > 1 else math.inf


def _mean(values: Sequence[float], variances: Sequence[float]) -> Difference:
    return Difference(float(np.mean(values)), math.sqrt(sum(variances)) / len(variances))
