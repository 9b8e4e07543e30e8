"""Tests of the wanted outputs of a block, and of steps of Adam towards them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_export.fitting.block_data import BlockData
from moe_export.fitting.block_steps import StepRule
from moe_export.fitting.compact import compact_block, in_place_of
from moe_export.fitting.fit_block import FitRule, fit_block, relative_error
from moe_export.fitting.fit_tokens import FitTokens
from moe_export.passes.watched import watched
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.torch_model.block import RaggedMoEBlock

STEPS = StepRule(steps=60, learning_rate=0.02, tokens_per_step=200)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("fit_block") / "model")


def blocks_of(model: Path) -> list[RaggedMoEBlock]:
    modules = load_torch_model(model, torch.float32).modules()
    return [module for module in modules if isinstance(module, RaggedMoEBlock)]


def half(whole: RaggedMoEBlock) -> RaggedMoEBlock:
    """Copy of a block with the first 12 of 24 dimensions of every expert, without a shared one."""
    spec = replace(whole.spec, widths=((12,) * 6,) * 3)
    kept = {(whole.layer, expert): np.arange(12) for expert in range(6)}
    block = compact_block(copy.deepcopy(whole), spec, kept)
    block.shared = None
    return block


@pytest.mark.parametrize("rate", [0.02, 50.0])
def test_steps_bring_a_block_to_what_least_squares_cannot_reach(model: Path, rate: float) -> None:
    block, goal = (half(blocks_of(model)[0]) for _ in range(2))
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for expert in goal.routed:
            for matrix in (expert.gate, expert.up):
                noise = torch.randn(matrix.weight.shape, generator=draws)
                matrix.weight.add_(noise, alpha=0.2 * float(matrix.weight.square().mean().sqrt()))
        x_TD = torch.randn(1500, 64, generator=draws)
        data = BlockData(x_TD, goal(x_TD), torch.ones(1500))
    training, held_out = data.rows(slice(1200)), data.rows(slice(1200, None))
    rule = FitRule(ridge=0.01, mix=0.0, steps=replace(STEPS, learning_rate=rate))
    before = [weight.clone() for weight in block.parameters()]
    with torch.no_grad():
        fitted = fit_block(block, training, held_out, frozenset(range(6)), rule, lambda: None)
    errors = fitted.errors
    assert errors.distilled is not None
    best = min(errors.pruned, errors.refit, errors.distilled)
    assert relative_error(block, held_out) == pytest.approx(best, rel=1e-6)
    if rate == 50.0:
        # Too large a rate destroys the block, so that the steps are undone.
        assert errors.distilled > errors.refit
        assert not fitted.changed
        assert all(map(torch.equal, block.parameters(), before))
    else:
        assert errors.distilled < 0.6 * errors.refit
        assert len(fitted.changed) == 3 * 6 + 1


def test_a_block_in_place_of_another_computes_for_it_and_is_taken_out_again(model: Path) -> None:
    whole, other = blocks_of(model)[:2]
    x_TD = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, own = other(x_TD), whole(x_TD)
        with in_place_of(whole, other), watched(whole) as seen:
            assert torch.equal(whole(x_TD), expected)
        assert torch.equal(seen.x, x_TD)
        assert torch.equal(seen.output, expected)
        assert torch.equal(whole(x_TD), own)


def test_every_eighth_sequence_is_held_out_and_of_fewer_the_last() -> None:
    def held_out(count: int) -> list[int]:
        sequences = [np.full(1, number, np.int32) for number in range(count)]
        training, rest = FitTokens(sequences, np.ones(count)).divided()
        assert len(training.sequences) + len(rest.sequences) == count
        return [int(sequence[0]) for sequence in rest.sequences]

    assert [held_out(count) for count in (1, 2, 7, 17)] == [[], [1], [6], [7, 15]]


def test_every_token_has_the_weight_of_its_sequence() -> None:
    sequences = [np.zeros(2, np.int32), np.zeros(3, np.int32)]
    # Batches begin with the longest sequence.
    assert FitTokens(sequences, np.array([1.0, 0.5])).weights().tolist() == [0.5] * 3 + [1.0] * 2
