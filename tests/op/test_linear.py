"""Every execution of `Linear` without the library equals the reference on every case."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from moe_export.errors import ShapeError
from moe_export.formats import FORMATS, GRIDS
from moe_export.op.linear import linear
from moe_export.testing.cases import KINDS, Kind
from moe_export.testing.linear_cases import (
    LINEAR_CASES,
    LINEAR_EXECUTORS,
    LinearCase,
    linear_error_bound,
    linear_inputs_of,
    linear_model,
    run_linear_reference,
)

SOME_CASES = [
    case
    for case in LINEAR_CASES
    if case.name in ("no_rows", "one_row_and_bias", "rows_of_several_tiles", "one_axis")
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("case", SOME_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("executor", LINEAR_EXECUTORS)
def test_an_executor_equals_the_reference(executor: str, case: LinearCase, kind: Kind) -> None:
    inputs = linear_inputs_of(case, *kind)
    y, expected = LINEAR_EXECUTORS[executor](inputs), run_linear_reference(inputs)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    rounds = executor == "ort_function_optimized"
    bound = linear_error_bound(inputs, inputs.group_size if rounds else 0)
    error = np.abs(y.astype(np.float64) - expected.astype(np.float64))
    assert (error <= bound).all(), f"worst {error.max()}"


def test_the_bound_is_tight_enough_to_see_a_dropped_bias_or_depth() -> None:
    inputs = linear_inputs_of(LINEAR_CASES[3], "float16", "int4", 32)
    expected = run_linear_reference(inputs).astype(np.float64)
    bound = linear_error_bound(inputs, 32)
    without_bias = linear(inputs.x, inputs.weight).astype(np.float64)
    assert (np.abs(without_bias - expected) > bound).mean() > 0.5
    inputs.x[..., -1] = 0
    without_depth = run_linear_reference(inputs).astype(np.float64)
    assert (np.abs(without_depth - expected) > bound).mean() > 0.1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_model_passes_the_full_checker(kind: Kind) -> None:
    onnx.checker.check_model(linear_model(linear_inputs_of(LINEAR_CASES[3], *kind)), True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1] in GRIDS], ids=str)
def test_dequantizing_and_multiplying_become_one_node_except_of_a_codebook(
    kind: Kind, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    model = linear_model(linear_inputs_of(LinearCase("fused", (3,), 64, 96), *kind))
    onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    fused = GRIDS[kind[1]].codebook is None
    assert found["MatMulNBits"] == (1 if fused else 0)
    assert not found["DequantizeLinear"]


X = np.ones((2, 32), np.float32)
WEIGHT = np.ones((32, 3), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.astype(np.float64), WEIGHT), r"x is float64 \[2, 32\], expected \[..., K\]"),
        ((X[:, :31], WEIGHT), r"weight is float32 \[32, 3\], expected float32 \[31, N\]"),
        ((X, WEIGHT.astype(np.float16)), "weight is float16"),
        ((X, FORMATS["int8"](WEIGHT, 32, "float16")), "weight is float16"),
        ((X, WEIGHT, np.ones(4, np.float32)), r"bias is float32 \[4\], expected float32 \[3\]"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        linear(*arguments)
