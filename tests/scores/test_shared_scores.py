"""Tests of the shared expert's scores against slow and plain computations of their formulas."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from moe_export.artifacts.importance import Importance
from moe_export.scores import SCORES, DataScore, scores_named
from moe_export.scoring import collector as layerwise
from moe_export.scoring.collect import collect_importance
from moe_export.testing.families import DEEPSEEK_V2, QWEN2_MOE, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import LayeredModel, load_torch_model
from tests.scores.test_scores import (
    LENGTHS,
    LOSS_OF,
    absolute,
    axis_of,
    blocks_of,
    calibration_of,
    in_float64,
    rounded,
    share_of,
    through_down,
    with_weight_gradients,
)

ROUTED = 6 * 24
OF_SEQUENCE = {
    "absgrad": absolute,
    "rounding_margin": rounded,
    "fisher": lambda expert: through_down(expert) ** 2,
    "fisher_margin": lambda expert: through_down(expert) ** 2,
}
for weighted in ("rounding_margin", "fisher", "fisher_margin"):
    OF_SEQUENCE[f"{weighted}_weighted"] = OF_SEQUENCE[weighted]


@pytest.fixture(params=[QWEN2_MOE, DEEPSEEK_V2], ids=lambda row: row.model_type)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    row: FamilyRow = request.param
    source = tiny_checkpoint(tmp_path / "model", base=row.config)
    return in_float64(load_torch_model(source, torch.float32))


def collect(model: Any, names: Sequence[str], *, shared: bool = True) -> Importance:
    with tempfile.TemporaryDirectory() as folder:
        actual = collect_importance(
            LayeredModel(model),
            axis_of(model, has_shared=shared),
            calibration_of(LENGTHS),
            scores_named(names),
            30,
            Path(folder),
        )
    assert actual is not None
    return actual


@pytest.mark.parametrize("name", LOSS_OF)
def test_gradient_scores_equal_one_backward_pass_per_sequence(model: Any, name: str) -> None:
    actual = collect(model, [name]).scores[name]
    expected = {block.layer: 0.0 for block in blocks_of(model)}
    for tokens in calibration_of(LENGTHS).sequences():
        with_weight_gradients(model, tokens, LOSS_OF[name])
        for block in blocks_of(model):
            value_W = OF_SEQUENCE[name](block.all_experts[-1]).numpy()
            expected[block.layer] += share_of(name, tokens) * value_W
    assert len(expected) == 2
    for layer, expected_W in expected.items():
        # absgrad takes its gradients in float32; the weights 1/n of the tokens always are.
        np.testing.assert_allclose(actual[layer][ROUTED:], expected_W, rtol=2e-6, atol=1e-9)


def test_activation_scores_take_every_token_with_the_weight_of_the_gate(model: Any) -> None:
    names = ["activation", "router_weighted_activation", "router_frequency", "reap"]
    actual = collect(model, names).scores
    inputs: dict[int, list[Tensor]] = {block.layer: [] for block in blocks_of(model)}
    for block in blocks_of(model):
        block.register_forward_pre_hook(
            lambda module, args: inputs[module.layer].extend(args[0].reshape(-1, 64))
        )
    with torch.no_grad():
        for tokens in calibration_of(LENGTHS).sequences():
            model(torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False)
    for block in blocks_of(model):
        gate, up, down = (matrix.weight for matrix in block.all_experts[-1])
        x_TD = torch.stack(inputs[block.layer])
        assert len(x_TD) == sum(LENGTHS)
        weight_T1 = torch.ones(len(x_TD), 1)
        if block.spec.family.shared_gate:
            weight_T1 = torch.sigmoid(x_TD @ block.shared_expert_gate.weight.T)
        h_TW = F.silu(x_TD @ gate.T) * (x_TD @ up.T)
        weighted_TW = (weight_T1 * h_TW).square() * down.square().sum(0)
        output_T = (h_TW @ down.T).norm(dim=1)
        expected = {
            "activation": h_TW.abs().mean(0),
            "router_weighted_activation": weighted_TW.mean(0),
            "router_frequency": torch.full((len(up),), float(sum(LENGTHS))),
            "reap": (weight_T1[:, 0] * output_T).mean().expand(len(up)),
        }
        for name in names:
            np.testing.assert_allclose(
                actual[name][block.layer][ROUTED:], expected[name], rtol=1e-9, err_msg=name
            )


def test_a_few_sequences_at_a_time_give_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [score.name for score in SCORES.values() if isinstance(score, DataScore)]
    whole = collect(model, names)
    for tokens in (1, 14):
        monkeypatch.setattr(layerwise, "SHARED_TOKENS", tokens)
        parts = collect(model, names)
        for name in names:
            for actual, expected in zip(parts.scores[name], whole.scores[name], strict=True):
                # absgrad adds its gradients in float32.
                np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-12)


def test_routed_experts_are_scored_as_without_it_to_the_bit(model: Any) -> None:
    # A mixture is made of shares of the whole axis, which the shared expert is a part of.
    names = [name for name, score in SCORES.items() if score.unit != "share"]
    with_it, without = (collect(model, names, shared=shared) for shared in (True, False))
    for layer, tokens_E in enumerate(without.tokens_per_expert):
        np.testing.assert_array_equal(with_it.tokens_per_expert[layer], tokens_E)
        rows = ROUTED if len(tokens_E) else 0
        shared = len(blocks_of(model)[-1].all_experts[-1].up.weight) if rows else 0
        for name in names:
            assert without.scores[name][layer].shape == (rows,)
            assert with_it.scores[name][layer].shape == (rows + shared,)
            np.testing.assert_array_equal(
                with_it.scores[name][layer][:rows], without.scores[name][layer]
            )
