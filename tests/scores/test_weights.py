"""Tests of the weights of sequences and sources in scores, and of the shares that they leave."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.scores import SCORES, DataScore, scores_named
from moe_export.scoring.collect import collect_importance
from moe_export.scoring.source_weights import SourceWeights
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import LayeredModel, load_torch_model
from tests.scores.test_scores import axis_of, blocks_of, calibration_of, in_float64, mean_loss

LENGTHS = (5, 3, 9)
SOURCES = (0, 1, 0)
WEIGHTS = (3.0, 1.0)
SHARES = (0.75, 0.25)
NAMES = [score.name for score in SCORES.values() if isinstance(score, DataScore)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tiny_checkpoint(tmp_path_factory.mktemp("weights") / "stock")
    return in_float64(load_torch_model(directory, torch.float32))


def two_sources(weights: Sequence[float] = WEIGHTS) -> Calibration:
    """Sequences of two sources, which share batches."""
    return replace(
        calibration_of(LENGTHS),
        source_S=np.array(SOURCES, np.int32),
        weight_K=np.array(weights, np.float64),
    )


def only(calibration: Calibration, source: int) -> Calibration:
    """The sequences of one source."""
    sequences = [
        tokens
        for tokens, number in zip(calibration.sequences(), calibration.source_S, strict=True)
        if number == source
    ]
    zeros_S = np.zeros(len(sequences), np.int32)
    offsets_S1 = np.concatenate([[0], np.cumsum([len(tokens) for tokens in sequences])])
    return Calibration(np.concatenate(sequences), offsets_S1.astype(np.int64), zeros_S, zeros_S)


def collect(model: Any, calibration: Calibration, names: Sequence[str]) -> Importance:
    with tempfile.TemporaryDirectory() as folder:
        importance = collect_importance(
            LayeredModel(model),
            axis_of(model),
            calibration,
            scores_named(names),
            30,
            Path(folder),
        )
    assert importance is not None
    return importance


def test_weights_of_two_sources_by_hand() -> None:
    # 14 tokens and 3, of which 12 and 2 have a loss; shares 3/4 and 1/4.
    weights = SourceWeights.of(two_sources())
    np.testing.assert_array_equal(weights.targets_S, [4, 2, 8])
    np.testing.assert_allclose(weights.token_weight_K, [0.75 * 17 / 14, 0.25 * 17 / 3])
    np.testing.assert_allclose(weights.target_weight_K, [0.875, 1.75])


def test_without_weights_in_the_recipe_every_token_weighs_one() -> None:
    weights = SourceWeights.of(two_sources(weights=()))
    np.testing.assert_array_equal(weights.token_weight_K, [1, 1])
    np.testing.assert_array_equal(weights.target_weight_K, [1, 1])


@pytest.mark.parametrize("name", NAMES)
def test_a_score_is_the_mean_of_its_sources_as_they_weigh(model: Any, name: str) -> None:
    calibration = two_sources()
    alone = [collect(model, only(calibration, source), [name]) for source in (0, 1)]
    both = collect(model, calibration, [name])
    score = SCORES[name]
    assert isinstance(score, DataScore)
    if score.mean_over == "sequences":
        factors: Sequence[float] = (2 / 3, 1 / 3)
    elif score.mean_over == "routed_tokens":
        factors = (1, 1)
    elif score.mean_over is None:
        # A count of tokens: that of a source, in proportion to its share of all 17.
        factors = (0.75 * 17 / 14, 0.25 * 17 / 3)
    else:
        factors = SHARES
    weight_K = SourceWeights.of(calibration).token_weight_K
    total_K = np.zeros(2)
    for layer, actual_R in enumerate(both.scores[name]):
        tokens_KR = np.array([np.repeat(each.tokens_per_expert[layer], 24) for each in alone])
        parts_KR = np.array([each.scores[name][layer] for each in alone])
        parts_KR = np.where(tokens_KR > 0, parts_KR, 0) * np.array(factors)[:, None]
        if score.mean_over == "routed_tokens":
            # Its divisor is the weight of the tokens that each expert gets, not that of all.
            routed_KR = weight_K[:, None] * tokens_KR
            parts_KR *= routed_KR / np.maximum(routed_KR.sum(0), 1e-30)
        reached = tokens_KR.sum(0) > 0
        expected_R = parts_KR.sum(0)[reached]
        np.testing.assert_allclose(actual_R[reached], expected_R, rtol=2e-6, atol=1e-12)
        total_K += parts_KR[:, reached].sum(1)
    shares_K = both.source_shares[name]
    np.testing.assert_allclose(shares_K, total_K / total_K.sum(), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [("fisher_weighted", "cross_entropy"), ("fisher_margin_weighted", "margin")],
)
def test_weighted_fisher_equals_finite_differences_of_a_mask(
    model: Any, name: str, loss: str
) -> None:
    calibration, step = two_sources(), 1e-4
    actual = collect(model, calibration, [name]).scores[name]
    # 4, 2 and 8 targets, as above; the weights of a source's targets are by hand too.
    weights = np.array([4 * 0.875, 2 * 1.75, 8 * 0.875]) / 14
    for layer, block in enumerate(blocks_of(model)):
        reached = np.flatnonzero(np.isfinite(actual[layer]))
        for row in reached[:: len(reached) // 4]:
            column = block.routed[row // 24].down.weight[:, row % 24]
            kept, squares = column.clone(), []
            for tokens in calibration.sequences():
                values = []
                for mask in (1 + step, 1 - step):
                    column.copy_(kept * mask)
                    values.append(float(mean_loss(model, tokens, loss)))
                squares.append(((values[0] - values[1]) / (2 * step)) ** 2)
            column.copy_(kept)
            expected = float(np.dot(weights, squares))
            assert actual[layer][row] == pytest.approx(expected, rel=1e-5, abs=1e-14)


def mask_one(block: Any, row: int, token: int, change: float) -> Any:
    """Hook that changes the mask of a row from 1 by `change`, on one token alone."""
    expert, dimension = block.routed[row // 24], row % 24

    def hook(_: Any, args: Any, output_TD: Any) -> Any:
        x_TD = args[0].reshape(-1, 64)
        weight_TK, expert_TK = block.route(x_TD)
        p = weight_TK[token][expert_TK[token] == row // 24].sum()
        gate_D, up_D, down_D = (
            *(matrix.weight[dimension] for matrix in (expert.gate, expert.up)),
            expert.down.weight[:, dimension],
        )
        h = torch.nn.functional.silu(x_TD[token] @ gate_D) * (x_TD[token] @ up_D)
        changed = output_TD.clone()
        changed.reshape(-1, 64)[token] += change * p * h * down_D
        return changed

    return block.register_forward_hook(hook)


def test_fisher_per_token_equals_finite_differences_of_a_mask_on_one_token(model: Any) -> None:
    calibration, step, layer = calibration_of([6, 4]), 1e-4, 1
    actual = collect(model, calibration, ["fisher_per_token"]).scores["fisher_per_token"][layer]
    reached = np.flatnonzero(np.isfinite(actual))
    for row in reached[:: len(reached) // 3]:
        total = 0.0
        for tokens in calibration.sequences():
            for token in range(len(tokens)):
                values = []
                for change in (step, -step):
                    handle = mask_one(blocks_of(model)[layer], row, token, change)
                    values.append(float(mean_loss(model, tokens, "cross_entropy")))
                    handle.remove()
                total += ((values[0] - values[1]) / (2 * step) * (len(tokens) - 1)) ** 2
        assert actual[row] == pytest.approx(total / 8, rel=1e-5, abs=1e-14)


def test_a_long_sequence_counts_more_than_by_the_square_of_its_mean(model: Any) -> None:
    # A sequence of 96 tokens, and 24 of 4 from another source.
    sources_S = np.array([0] + [1] * 24, np.int32)
    calibration = replace(calibration_of((96, *[4] * 24)), source_S=sources_S)
    shares = collect(model, calibration, ["fisher", "fisher_weighted"]).source_shares
    odds = {name: share_K[0] / share_K[1] for name, share_K in shares.items()}
    # Per sequence, the weights are 95 and 3 in place of 1 and 1.
    assert odds["fisher_weighted"] == pytest.approx(odds["fisher"] * 95 / 3)
    assert odds["fisher"] < 0.01
