"""Tests of experts in bfloat16, whose tokens are padded so that shapes recur.

Legend: N tokens, D hidden, K outputs.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_export.scores import SCORES
from moe_export.system.onednn import ROWS_AT_ONCE
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import block, load_torch_model, recording
from moe_export.torch_model.block import Matrix
from moe_export.torch_model.recording import QUANTITIES
from tests.scores.test_scores import collect

LENGTHS = (70, 33, 41, 5)


class RowsMultiplied(TorchDispatchMode):  # type: ignore[misc]
    """Recorder of the number of rows of the left matrix in every product."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.mm.default:
            self.rows.append(len(args[0]))
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("rows") / "stock")


def matrix_of(weight_KD: Tensor) -> Matrix:
    made = Matrix(tuple(weight_KD.shape)).bfloat16().requires_grad_(False)
    made.weight.copy_(weight_KD)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_multiply_multiples_of_32_tokens_in_bfloat16_alone(
    directory: Path, dtype: torch.dtype
) -> None:
    layer = load_torch_model(directory, dtype).base_model.layers[0].mlp
    x_ND = torch.randn(75, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    x_ND.requires_grad_()
    every = frozenset(QUANTITIES)
    with recording(layer, every, every, shared=True) as made, RowsMultiplied() as noted:
        y_ND = layer(x_ND)
        y_ND.backward(torch.ones_like(y_ND))
    counts = [len(trace.token_N) for trace in made.layers[0]]
    assert sum(counts) == 3 * 75
    assert any(count % ROWS_AT_ONCE for count in counts)
    # Gate, up and down of each expert, and the two routers, forward and back.
    multiplied = 2 * sorted(3 * counts + 2 * [75])
    if dtype == torch.bfloat16:
        multiplied = [math.ceil(rows / ROWS_AT_ONCE) * ROWS_AT_ONCE for rows in multiplied]
    assert sorted(noted.rows) == sorted(multiplied)
    for trace, count in zip(made.layers[0], counts, strict=True):
        assert {len(value) for value in trace.values.values()} == {count}


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 100])
def test_products_and_their_gradients_are_those_of_the_tokens_alone(rows: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight_KD = torch.randn(24, 64, generator=generator).bfloat16()
    x_ND = torch.randn(rows, 64, generator=generator).bfloat16().requires_grad_()
    slope_NK = torch.randn(rows, 24, generator=generator).bfloat16()
    y_NK = matrix_of(weight_KD)(x_ND)
    (actual_ND,) = torch.autograd.grad(y_NK, x_ND, slope_NK)
    # Sums are in float32 and rounded to bfloat16 once.
    for actual, left, right in (
        (y_NK, x_ND, weight_KD.T),
        (actual_ND, slope_NK, weight_KD),
    ):
        exact = left.detach().double() @ right.double()
        size = left.detach().double().abs() @ right.double().abs()
        assert actual.shape == exact.shape
        limit = exact.abs() * 2.0**-8 + size * 64 * 2.0**-24
        assert ((actual.detach().double() - exact).abs() <= limit).all()


def test_rows_of_zeros_hand_nothing_on_where_weights_are_infinite() -> None:
    # A padding row of zeros times an infinite weight is NaN; a row of ones gives infinity.
    x_ND = torch.ones(5, 64, dtype=torch.bfloat16, requires_grad=True)
    y_NK = matrix_of(torch.full((24, 64), math.inf))(x_ND)
    (slope_ND,) = torch.autograd.grad(y_NK, x_ND, torch.ones_like(y_NK))
    for actual, shape in ((y_NK, (5, 24)), (slope_ND, (5, 64))):
        assert actual.shape == shape
        assert torch.isposinf(actual).all()


def test_scores_are_those_of_tokens_that_are_not_filled_up(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, names = load_torch_model(directory, torch.bfloat16), list(SCORES)
    filled = collect(model, names, LENGTHS, batch_tokens=200)
    monkeypatch.setattr(block, "ROWS_AT_ONCE", 1)
    plain = collect(model, names, LENGTHS, batch_tokens=200)
    for actual_E, expected_E in zip(filled.tokens_per_expert, plain.tokens_per_expert, strict=True):
        np.testing.assert_array_equal(actual_E, expected_E)
        assert any(count % ROWS_AT_ONCE for count in expected_E)
    for name in names:
        for actual_R, expected_R in zip(filled.scores[name], plain.scores[name], strict=True):
            # Sums in another order round to the neighbouring bfloat16 at worst, 2**-8 of their
            # size; scores are squares of values that pass three layers.
            limit = 2 * 3 * 2.0**-8 * np.abs(expected_R).max()
            np.testing.assert_allclose(actual_R, expected_R, rtol=0, atol=limit, err_msg=name)
