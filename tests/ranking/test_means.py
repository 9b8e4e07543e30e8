"""Tests of means over sources, against figures worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_export.ranking.held_out import HeldOutSet
from moe_export.ranking.means import Divergence, SourceMeans
from tests.ranking.conftest import Case


def test_a_source_counts_by_its_weight_and_its_tokens_alike() -> None:
    # Source 0: 6 nats over 4 tokens; residuals 2 - 1.5 * 2 and 4 - 1.5 * 2 are -1 and 1, whose
    # deviation is sqrt(2), over sqrt(2) sequences of 2 tokens: 0.5. Source 1: a single sequence.
    found = Divergence(
        kl_S=np.array([2.0, 4.0, 1.0]),
        loss_S=np.zeros(3),
        tokens_S=np.array([2.0, 2.0, 10.0]),
        source_S=np.array([0, 0, 1]),
    )
    means = SourceMeans.of(found.kl_S, found, 2)
    assert means.mean_K.tolist() == [1.5, 0.1]
    assert means.stderr_K[0] == pytest.approx(0.5)
    assert math.isnan(means.stderr_K[1])
    assert means.over(np.array([0.75, 0.25])) == (pytest.approx(0.75 * 1.5 + 0.25 * 0.1), None)
    assert means.over(np.array([1.0, 0.0])) == (1.5, pytest.approx(0.5))


def test_sources_count_alike_unless_the_recipe_weighs_them(case: Case) -> None:
    assert case.held_out.weight_K.tolist() == [0.5, 0.5]
    assert case.held_out.answered_K.tolist() == [True, False]
    weighed = vars(case.held_out.sequences) | {"weight_K": np.array([3.0, 1.0])}
    held_out = HeldOutSet(type(case.held_out.sequences)(**weighed), case.held_out.names)
    assert held_out.weight_K.tolist() == [0.75, 0.25]


def test_the_first_sequences_are_spread_over_each_source(case: Case) -> None:
    assert case.held_out.first(1).tolist() == [2, 5]
    assert case.held_out.first(2).tolist() == [1, 3, 4, 5]
    assert case.held_out.first(9).tolist() == [0, 1, 2, 3, 4, 5]
