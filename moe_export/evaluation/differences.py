"""Two models on the same documents: how far apart they are, and how sure that is.

Both have met the same easy and hard documents, so that the error of their difference is that of the
differences by document, and much smaller than either's own.

Legend: N documents of a task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ERRORS = 2
"""Standard errors that a difference must exceed."""

OfTasks = Mapping[str, Mapping[str, Any]]
"""By task `tokens`, `matches` and `kl_nats` of each document; see `evaluation.Documents`."""


@dataclass(frozen=True)
class Difference:
    """Of a quantity, the first model's less the second's, mean over the tasks.

    Attributes:
        value: the difference.
        stderr: its standard error.
    """

    value: float
    stderr: float

    @property
    def is_within_error(self) -> bool:
        """Whether it could as well be none."""
        return abs(self.value) <= ERRORS * self.stderr


def kl_difference(first: OfTasks, second: OfTasks) -> Difference:
    """Of the mean KL per token, in nats."""
    values, variances = [], []
    for name, ours in first.items():
        tokens_N = np.array(ours["tokens"], float)
        gap_N = np.array(ours["kl_nats"]) - np.array(second[name]["kl_nats"])
        values.append(float(gap_N.sum() / tokens_N.sum()))
        # A ratio of two sums: its error is that of what it leaves over in each document.
        variances.append(_variance_of_mean(gap_N - values[-1] * tokens_N) / tokens_N.mean() ** 2)
    return _mean(values, variances)


def match_difference(first: OfTasks, second: OfTasks, answered: Sequence[str]) -> Difference:
    """Of the share of documents that match exactly.

    Args:
        first: a model.
        second: another.
        answered: the tasks with answers.
    """
    values, variances = [], []
    for name in answered:
        gap_N = np.array(first[name]["matches"], float) - np.array(second[name]["matches"], float)
        values.append(float(gap_N.mean()))
        variances.append(_variance_of_mean(gap_N))
    return _mean(values, variances)


def only_one_matches(first: OfTasks, second: OfTasks, answered: Sequence[str]) -> tuple[int, int]:
    """Documents that the first alone has right, and those that the second alone has."""
    pairs = [
        (bool(a), bool(b))
        for name in answered
        for a, b in zip(first[name]["matches"], second[name]["matches"], strict=True)
    ]
    return pairs.count((True, False)), pairs.count((False, True))


def _variance_of_mean(values_N: NDArray[np.float64]) -> float:
    return float(values_N.var(ddof=1) / len(values_N)) if len(values_N) > 1 else math.inf


def _mean(values: Sequence[float], variances: Sequence[float]) -> Difference:
    return Difference(float(np.mean(values)), math.sqrt(sum(variances)) / len(variances))
