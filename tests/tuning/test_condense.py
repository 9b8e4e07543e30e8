"""Tests of the bias rule and of the choice of condensers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from moe_export.documents.tokens import TokenSequence
from moe_export.families import open_checkpoint
from moe_export.recipe import CondenserSettings, Source, TuneSettings
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from moe_export.tuning.condense import Condensing, first_phase, moved_bias
from moe_export.tuning.extension import config_keys, extended
from moe_export.tuning.forward import run_packed
from moe_export.tuning.packing import PackedBatch, batch_of

LAYER = "model.layers.0"
DOCUMENTS = [
    TokenSequence(tokens=[(7 * i + 3 * j) % 250 for j in range(9 + i)], prompt_tokens=2)
    for i in range(4)
]


def settings(**rule: object) -> TuneSettings:
    return TuneSettings(
        method="condenser",
        sources=(Source(demo="sums"),),
        condenser=CondenserSettings.model_validate(rule),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("condense") / "model")


def condensing(model: Path, steps: int = 8, **rule: object) -> Condensing:
    spec = extended(open_checkpoint(model)[1], settings(**rule))
    loaded = load_torch_model(model, torch.float32, added=config_keys(spec))
    return Condensing(loaded, settings(**rule), steps)


def step(of: Condensing, number: int, *batches: PackedBatch) -> list[Tensor]:
    """Biases after a step over some batches."""
    with torch.no_grad():
        for batch in batches:
            with of.watched(batch):
                run_packed(of.model, batch)
    of.step(number)
    return [block.router_bias.clone() for block in of.blocks]


def rows(*numbers: int, row_tokens: int = 12) -> PackedBatch:
    return batch_of([[number] for number in numbers], DOCUMENTS, row_tokens, 1.0)


def test_three_steps_by_hand() -> None:
    """Mean 1 of four experts: those above it rise, those below it fall, one at it stays."""
    bias_E = torch.zeros(4)
    for mass_E, expected in (
        ([2.0, 1.0, 0.5, 0.5], [0.1, 0.0, -0.1, -0.1]),
        ([2.5, 0.9, 0.3, 0.3], [0.2, -0.1, -0.2, -0.2]),
        ([0.5, 2.5, 0.5, 0.5], [0.1, 0.0, -0.3, -0.3]),
    ):
        before_E, mass = bias_E, torch.tensor(mass_E, dtype=torch.float64)
        bias_E = moved_bias(bias_E, mass, 0.1)
        torch.testing.assert_close(bias_E, torch.tensor(expected))
        # DeepSeek's rule lowers what this one raises.
        deepseek_E = before_E - 0.1 * torch.sign(mass - mass.mean()).float()
        torch.testing.assert_close(deepseek_E - before_E, before_E - bias_E)
    assert bias_E.dtype == torch.float32


def test_biases_follow_the_probabilities_of_real_tokens(model: Path) -> None:
    of = condensing(model)
    seen = []
    block = of.blocks[1]
    block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    biases = step(of, 0, rows(0, 1))
    real_TD = torch.cat([seen[0][0, :8], seen[0][1, :9]])
    with torch.no_grad():
        share_TE = torch.softmax(block.router(real_TD), -1)
    mass_E = share_TE.double().sum(0)
    expected_E = 0.4 / 8 * torch.sign(mass_E - mass_E.mean()).float()
    assert torch.equal(biases[1], expected_E)
    assert len(expected_E.unique()) == 2


def test_two_batches_of_a_step_give_what_one_gives_and_padding_nothing(model: Path) -> None:
    whole, halves, padded = (condensing(model) for _ in range(3))
    for number in range(3):
        expected = step(whole, number, rows(0, 1, 2, 3))
        halved = step(halves, number, rows(0, 1), rows(2, 3))
        longer = step(padded, number, rows(0, 1, 2, 3, row_tokens=60))
        for bias_E, half_E, longer_E in zip(expected, halved, longer, strict=True):
            assert torch.equal(bias_E, half_E)
            assert torch.equal(bias_E, longer_E)
    assert max(float(bias_E.abs().max()) for bias_E in expected) == pytest.approx(3 * 0.4 / 8)


def test_recomputing_a_forward_pass_moves_no_bias(model: Path) -> None:
    plain, checkpointed = condensing(model), condensing(model)
    block = checkpointed.blocks[0]
    forwards = []
    block.register_forward_pre_hook(lambda *_: forwards.append(1))
    recomputed = partial(checkpoint, checkpointed.model.get_submodule(LAYER).forward)
    checkpointed.model.get_submodule(LAYER).forward = partial(recomputed, use_reentrant=False)
    for of in (plain, checkpointed):
        of.model.train().requires_grad_(True)
        with of.watched(rows(0, 1)):
            run_packed(of.model, rows(0, 1)).square().mean().backward()
        of.model.requires_grad_(False)
        of.step(0)
    assert len(forwards) == 2
    for expected, found in zip(plain.blocks, checkpointed.blocks, strict=True):
        assert float(expected.router_bias.abs().max()) > 0
        assert torch.equal(found.router_bias, expected.router_bias)


@pytest.mark.parametrize(("choose", "best"), [("lowest", [1, 4]), ("highest", [0, 2])])
def test_experts_of_extreme_bias_are_fixed_after_the_first_phase(
    choose: str, best: list[int], model: Path
) -> None:
    of = condensing(model, steps=4, choose=choose, phases=(0.25, 0.75))
    assert first_phase(of.settings.condensers, 4) == 1
    assert set(of.experts.values()) == {()}
    for block in of.blocks:
        block.router_bias.copy_(torch.tensor([0.3, -0.3, 0.2, 0.0, -0.3, 0.2]))
    of.step(0)
    assert set(of.experts.values()) == {tuple(best)}
    for block in of.blocks:
        block.router_bias.copy_(torch.arange(6.0))
    of.step(1)
    assert set(of.experts.values()) == {tuple(best)}
    assert {block.spec.active_experts for block in of.blocks} == {4}


def test_no_condensers_are_chosen_with_count_0(model: Path) -> None:
    of = condensing(model, steps=2, count=0)
    for number in range(2):
        step(of, number, rows(0, 1))
    assert set(of.experts.values()) == {()}
    assert {block.spec.active_experts for block in of.blocks} == {2}
