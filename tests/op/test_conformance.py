"""Every execution of `RaggedMoE` equals the reference on every case."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from moe_export.formats import GRIDS
from moe_export.op.reference import ragged_moe
from moe_export.testing.cases import (
    CASES,
    FACTOR_CASES,
    KINDS,
    UP_SCALED_CASES,
    Case,
    Inputs,
    Kind,
    cases_and_kinds,
    id_of,
    inputs_of,
)
from moe_export.testing.executors import EXECUTORS, feeds, one_node_model, run_reference, session_of
from moe_export.testing.tolerance import error_bound

# The function's branches: floats without a cast and with one, codes as numbers and in a table; and
# both widths of codes that ONNX Runtime multiplies by its own kernels.
THOROUGH: tuple[Kind, ...] = (
    ("float32", "float32", 0),
    ("float16", "bfloat16", 0),
    ("float32", "int4", 32),
    ("float32", "int8", 32),
    ("float16", "nf4", 64),
)


# Factors multiply x and hidden values, which are floats in every format.
SCALED = [
    *((case, THOROUGH[number]) for number in (0, 2) for case in FACTOR_CASES),
    *(
        (case, kind)
        for kind in (THOROUGH[1], KINDS[1], KINDS[9], KINDS[15])
        for case in UP_SCALED_CASES
    ),
]


@pytest.mark.parametrize(
    ("case", "kind"), [*cases_and_kinds(CASES, KINDS, THOROUGH), *SCALED], ids=id_of
)
@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_executor_equals_the_reference(executor: str, case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    y = EXECUTORS[executor](inputs)
    expected = run_reference(inputs)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    # Optimized, DequantizeLinear and MatMul are one MatMulNBits, which rounds activations to int8
    # (accuracy level 4 unless the session says otherwise) in blocks as long as groups of weights.
    rounds = executor == "ort_function_optimized"
    bound = error_bound(inputs, inputs.group_size if rounds else 0)
    error = np.abs(y.astype(np.float64) - expected.astype(np.float64))
    assert (error <= bound).all(), f"worst {error.max()}"


def test_the_bound_is_tight_enough_to_see_a_dropped_expert() -> None:
    inputs = inputs_of(CASES[2], "float16")
    without = inputs.routing_weights.copy()
    without[:, 1] = 0
    y = ragged_moe(inputs.x, inputs.expert_indices, without, inputs.experts)
    error = np.abs(y.astype(np.float64) - run_reference(inputs).astype(np.float64))
    assert (error > error_bound(inputs)).any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("case", ["one_token", "shared_expert", UP_SCALED_CASES[1].name])
def test_the_model_passes_the_full_checker(case: str, kind: Kind) -> None:
    (found,) = (c for c in (*CASES, *UP_SCALED_CASES) if c.name == case)
    onnx.checker.check_model(one_node_model(inputs_of(found, *kind)), full_check=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] == "float32"], ids=str)
def test_dequantizing_and_multiplying_become_one_node_except_of_a_codebook(
    kind: Kind, tmp_path: Path
) -> None:
    inputs = inputs_of(Case("fused", (40, 64), tokens=3, top_k=1), *kind)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        one_node_model(inputs).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    fused = kind[1] in GRIDS and GRIDS[kind[1]].codebook is None
    assert found["MatMulNBits"] == (6 if fused else 0)
    assert found["MatMul"] == (0 if fused else 6)
    # Of a codebook the looking up is done when the session is made: floats are what is left.
    assert not found["DequantizeLinear"]
    assert found["Gather"] == 3


def test_stock_onnx_runtime_gives_the_same_bits_every_time() -> None:
    inputs = inputs_of(Case("busy", (8, 0, 33, 7), tokens=512, top_k=4), "float32")
    session = session_of(one_node_model(inputs), optimize=True)
    first = session.run(None, feeds(inputs))[0]
    for _ in range(20):
        np.testing.assert_array_equal(session.run(None, feeds(inputs))[0], first)


def test_an_expert_of_width_zero_gives_zero_also_in_used_memory() -> None:
    inputs = inputs_of(Case("empty", (0, 0, 24), tokens=64, top_k=2), "float32")
    session = session_of(one_node_model(inputs), optimize=True)
    on_empty = Inputs(
        inputs.x,
        np.tile(np.array([[0, 1]], dtype=np.int64), (64, 1)),
        inputs.routing_weights,
        inputs.experts,
    )
    for _ in range(5):
        assert session.run(None, feeds(inputs))[0].any()
        assert not session.run(None, feeds(on_empty))[0].any()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_nan_stays_in_its_own_row(executor: str) -> None:
    inputs = inputs_of(Case("nan", (8, 0, 33, 7), tokens=5, top_k=2), "float32")
    inputs.expert_indices[:] = [[0, 2], [3, 0], [2, 3], [1, 0], [0, 3]]
    inputs.x[2] = np.nan
    with np.errstate(invalid="ignore"):
        y, expected = EXECUTORS[executor](inputs), run_reference(inputs)
    assert np.isnan(y[2]).all()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
