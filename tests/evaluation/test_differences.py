"""Differences of two models on the same documents."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_export.artifacts.documents import DocumentScores
from moe_export.evaluation.differences import kl_difference, match_difference, only_one_matches


def task(tokens: list[int], matches: list[bool], kl_nats: list[float]) -> DocumentScores:
    return DocumentScores(tokens=tuple(tokens), matches=tuple(matches), kl_nats=tuple(kl_nats))


def test_kl_is_a_mean_per_token_and_over_tasks_with_the_error_of_a_ratio() -> None:
    first = {"a": task([1, 3], [], [0.5, 0.9]), "b": task([2, 2], [], [0.2, 0.2])}
    second = {"a": task([1, 3], [], [0.1, 0.1]), "b": task([2, 2], [], [0.1, 0.1])}
    found = kl_difference(first, second)
    # Task a: gaps 0.4 and 0.8 over 4 tokens, 0.3 each; left over 0.1 and -0.1, variance 0.02 / 2
    # over the mean length squared. Task b: 0.05 without any error.
    assert found.value == pytest.approx((0.3 + 0.05) / 2)
    assert found.stderr == pytest.approx(math.sqrt(0.01 / 4) / 2)
    assert not found.is_within_error


def test_a_model_differs_from_itself_by_nothing() -> None:
    one = {"a": task([1, 3], [True, False], [0.5, 0.9])}
    for found in (kl_difference(one, one), match_difference(one, one, ["a"])):
        assert (found.value, found.stderr) == (0.0, 0.0)
        assert found.is_within_error


def test_matches_are_compared_document_by_document() -> None:
    first = {"a": task([1] * 4, [True, True, False, True], [])}
    second = {"a": task([1] * 4, [True, False, False, False], [])}
    found = match_difference(first, second, ["a"])
    assert found.value == pytest.approx(0.5)
    assert found.stderr == pytest.approx(math.sqrt(np.var([0, 1, 0, 1], ddof=1) / 4))
    assert only_one_matches(first, second, ["a"]) == (2, 0)
    assert only_one_matches(second, first, ["a"]) == (0, 2)


def test_one_document_says_nothing() -> None:
    one, other = ({"a": task([1], [right], [])} for right in (True, False))
    assert match_difference(one, other, ["a"]).is_within_error
