"""Tests of scores that are computed from others, and of labels drawn from the model."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from moe_export.passes.loss import loss_gradients
from moe_export.scores.mixtures import mixed
from moe_export.scoring.collector import SAMPLING_SEED
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.scores.test_scores import (
    LENGTHS,
    blocks_of,
    calibration_of,
    collect,
    in_float64,
    rows,
    through_down,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory: Path = tiny_checkpoint(tmp_path_factory.mktemp("mixtures") / "stock")
    return in_float64(load_torch_model(directory, torch.float32))


def test_a_mixture_is_the_mean_of_two_shares_without_what_is_unknown() -> None:
    first = [np.array([1.0, 3.0]), np.array([np.inf, 4.0])]
    second = [np.array([0.0, 10.0]), np.array([np.inf, 30.0])]
    # The known values sum to 8 and to 40.
    expected = [[0.0625, (0.375 + 0.25) / 2], [np.inf, (0.5 + 0.75) / 2]]
    assert [layer_R.tolist() for layer_R in mixed(first, second)] == expected


def test_heapr_equals_its_formula_with_the_matrix_of_output_gradients(model: Any) -> None:
    values: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def remember(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        values.setdefault(module, []).append((inputs[0], output))

    downs = [expert.down for block in blocks_of(model) for expert in block.routed]
    handles = [down.register_forward_hook(remember) for down in downs]
    model.requires_grad_(True)
    for tokens in calibration_of(LENGTHS).sequences():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        logits_TV = model(ids, use_cache=False).logits[0, :-1]
        F.cross_entropy(logits_TV, ids[0, 1:], reduction="sum").backward()
    for handle in handles:
        handle.remove()
    actual = collect(model, ["heapr"]).scores
    assert list(actual) == ["heapr"]
    for layer, block in enumerate(blocks_of(model)):
        expected = []
        for expert in block.routed:
            h_NW = torch.cat([h for h, _ in values[expert.down]]).detach()
            g_ND = torch.cat([output.grad for _, output in values[expert.down]])
            moment_DD = g_ND.T @ g_ND / len(g_ND)
            down_DW = expert.down.weight.detach()
            second_W = ((moment_DD @ down_DW) * down_DW).sum(0)
            expected.append(h_NW.square().mean(0) * second_W)
        # The weights 1/n of the tokens are in float32.
        np.testing.assert_allclose(actual["heapr"][layer], torch.cat(expected), rtol=2e-6)


def test_the_sampled_fisher_is_that_of_labels_drawn_from_the_model(model: Any) -> None:
    actual = collect(model, ["fisher_sampled"]).scores["fisher_sampled"]
    expected = [np.zeros(len(layer_R)) for layer_R in actual]
    targets = sum(LENGTHS) - len(LENGTHS)
    for tokens in calibration_of(LENGTHS).sequences():
        model.requires_grad_(True).zero_grad()
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        logits_TV = model(ids, use_cache=False).logits[0, :-1]
        cumulative_TV = torch.softmax(logits_TV.detach(), -1).cumsum(-1).numpy()
        digest = zlib.crc32(tokens.astype(np.int64).tobytes())
        draw_T = np.random.default_rng((SAMPLING_SEED, digest)).random(len(tokens) - 1)
        label_T = (cumulative_TV <= draw_T[:, None]).sum(-1)
        F.cross_entropy(logits_TV, torch.from_numpy(label_T)).backward()
        for total_R, block in zip(expected, blocks_of(model), strict=True):
            total_R += (len(tokens) - 1) / targets * rows(block, through_down) ** 2
    for actual_R, expected_R in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_R, expected_R, rtol=2e-6, atol=1e-12)


def test_drawn_labels_have_the_frequencies_of_the_model() -> None:
    head = nn.Linear(3, 5, bias=False).double().requires_grad_(False)
    number = 1000
    hidden_TD = torch.randn(1, 3, generator=torch.Generator().manual_seed(1)).double()
    draw_T = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    slope_TD = loss_gradients(
        hidden_TD.expand(number, 3),
        head,
        torch.zeros(number, dtype=torch.int64),
        torch.ones(number, dtype=torch.float64),
        ["sampled"],
        draw_T,
    )["sampled"]
    # The mean over labels of p less one at the label is zero; each frequency is off by under 1/n.
    limit = 5 / number * head.weight.abs().sum(0).max()
    assert slope_TD.abs().max() > 0.01
    assert slope_TD.mean(0).abs().max() < limit
