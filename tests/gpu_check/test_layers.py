"""The part of `moe-export check-gpu` that times layers, in the interpreter and without a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.gpu_check import kernels, shapes
from moe_export.gpu_check.draws import routing
from moe_export.gpu_check.random_layers import expert_bytes, random_layer
from moe_export.op.spec import Format
from moe_export.op.triton import plan
from moe_export.op.triton.driver import DeviceLayer
from moe_export.testing import layer_sizes as sizes
from moe_export.testing.cases import Case, inputs_of
from tests.helpers.triton_kernels import large_shape, layout_of

TIMED: tuple[Format, ...] = ("float16", "int8", "int4", "uint8", "uint4", "nf4")


@pytest.mark.parametrize("format_name", TIMED)
def test_a_random_layer_has_the_layout_of_a_real_one(format_name: Format) -> None:
    widths, hidden = (33, 0, 130), 96
    case = Case("layout", widths, tokens=1, top_k=1, hidden=hidden)
    group = 0 if format_name == "float16" else 64
    real = DeviceLayer.of(layout_of(inputs_of(case, "float16", format_name, group)), "cpu")
    made = random_layer(widths, format_name, 64, 0, hidden, "cpu")
    assert made.layout.group_size == group
    facts = [
        {name: (tensor.dtype, tensor.numel()) for name, tensor in layer.tensors.items()}
        for layer in (made, real)
    ]
    assert facts[0] == facts[1]
    np.testing.assert_array_equal(made.layout.table, real.layout.table)


@pytest.mark.parametrize("tokens", [1, 16])
def test_all_draws_together_choose_each_expert_equally_often(tokens: int) -> None:
    draws = [routing(tokens, draw)[0] for draw in range(15)]
    assert all(len(set(row)) == 4 for row in draws[7].tolist())
    np.testing.assert_array_equal(np.bincount(np.concatenate(draws).ravel()), [tokens] * 60)
    if tokens == 16:
        # Tokens of one draw may share experts, as those of random routing do.
        assert len(np.unique(draws[0])) < 50


def test_the_bytes_of_an_expert_have_its_scales_and_zero_points() -> None:
    weights = 3 * sizes.HIDDEN * 704
    assert expert_bytes(704, "bfloat16", 0) == weights * 2
    assert expert_bytes(704, "int4", 128) == weights * (4 + 16 / 128) / 8
    assert expert_bytes(704, "uint4", 32) == weights * (4 + 24 / 32) / 8


def test_rows_of_all_kinds_come_with_shares_of_what_the_device_can_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _make_small(monkeypatch)
    monkeypatch.setattr(kernels, "TOKENS", (1, 9))
    monkeypatch.setattr(kernels, "DECODE_TOKENS", 4)
    kinds = [kind for kind in kernels.KINDS if kind.format_name == "bfloat16"]
    monkeypatch.setattr(kernels, "KINDS", kinds)
    monkeypatch.setattr(kernels, "device_name", lambda: "a device")
    monkeypatch.setattr(kernels, "copy_rate", lambda: 1e12)
    monkeypatch.setattr(kernels, "matrix_rate", lambda: 1e14)
    monkeypatch.setattr(kernels, "graph_seconds", _run_once)

    rows = kernels.layers("cpu")
    assert rows[0]["layer"] == "a device"
    assert (rows[0]["copy_bytes_per_s"], rows[0]["flops_per_s"]) == (1e12, 1e14)
    assert [(row["layer"], row["format"], row["tokens"]) for row in rows[1:]] == [
        (name, "float16" if name == kernels.FUSED else "bfloat16", tokens)
        for name in ("skewed", "uniform 704", "padded 1408", kernels.FUSED)
        for tokens in (1, 9)
    ]
    (padded,) = (
        row
        for row in rows[1:]
        if (row["layer"], row["format"], row["tokens"]) == ("padded 1408", "bfloat16", 1)
    )
    # Two graphs' worth of one token in two experts of width 128 each, in a second.
    assert padded["path"] == "rows"
    assert padded["us"] == padded["rows_us"] == 0.5e6
    assert padded["of_copy"] == pytest.approx(2 * 2 * 3 * 128 * 128 * 2 / 1e12)
    assert padded["of_matrix_rate"] == pytest.approx(2 * 2 * 6 * 128 * 128 / 1e14)
    peer = [row["few_from_many"] for row in rows if row["layer"] == kernels.FUSED]
    # Both ways add up in float32 and round to float16 at the same places, sums in another order.
    assert max(peer) < 2**-8
    beside = [row for row in rows if "times_as_fast_as_fused" in row]
    assert [row["layer"] for row in beside] == ["uniform 704"] * 2
    assert {row["format"] for row in beside} == {"bfloat16"}
    assert {row["times_as_fast_as_fused"] for row in beside} == {1.0}


def test_each_kernel_is_timed_alone_in_its_shape_and_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _make_small(monkeypatch)
    monkeypatch.setattr(shapes, "graph_seconds", _run_once)
    monkeypatch.setattr(shapes, "COPIES", 2)
    monkeypatch.setattr(shapes, "FORMATS", ("int4",))
    other = plan.Shape(1, 8, 256, 4, 1)
    refused = plan.Shape(1, 3, 256, 4, 1)
    rows_kind = replace(shapes.KINDS[0], shapes=(other, refused))
    tiles = replace(shapes.KINDS[1], tokens=9, shapes=(plan.Shape(16, 32, 64, 4, 1),))
    monkeypatch.setattr(shapes, "KINDS", (rows_kind, tiles))

    rows = shapes.shapes("cpu")
    assert [(row["kernel"], row["rows"], row["columns"], row["tokens"]) for row in rows] == [
        *[("gate_up_rows", 32, 128, 1), ("gate_up_rows", 8, 256, 1), ("gate_up_rows", 3, 256, 1)],
        *[("down_rows", 32, 128, 1), ("down_rows", 8, 256, 1), ("down_rows", 3, 256, 1)],
        *[("gate_up_tiles", 64, 64, 9), ("gate_up_tiles", 32, 32, 9)],
        *[("down_tiles", 64, 64, 9), ("down_tiles", 32, 32, 9)],
    ]
    failed = [row for row in rows if "failed" in row]
    assert [row["rows"] for row in failed] == [3, 3]
    assert {row["of_packaged"] for row in rows if row not in failed} == {1.0}


def _make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers, and as few programs as can be."""
    for name, value in (("HIDDEN", 128), ("EXPERTS", 4), ("TOP_K", 2)):
        monkeypatch.setattr(sizes, name, value)
    monkeypatch.setattr(sizes, "FULL_WIDTH", 128)
    monkeypatch.setattr(sizes, "MEAN_WIDTH", 64)
    monkeypatch.setattr(plan, "shape_of", large_shape)


def _run_once(jobs: Sequence[Callable[[], Any]]) -> float:
    for job in jobs:
        assert torch.isfinite(job()).all()
    return 1.0
