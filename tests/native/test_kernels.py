"""Every kernel of the library, and the library in ONNX Runtime, equal the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from numpy.typing import NDArray

from moe_export.formats import GRIDS
from moe_export.op import spec
from moe_export.op.reference import gelu
from moe_export.testing.cases import CASES, Case, Inputs, Kind, inputs_of
from moe_export.testing.executors import feeds, one_node_model, run_reference
from moe_export.testing.native_executors import (
    KERNELS,
    NATIVE_KINDS,
    layer_of,
    native_session,
    random_inputs,
    run_in_onnx_runtime,
    run_kernel,
)
from moe_export.testing.tolerance import error_bound

# The kernels' own block of int8 activations, whatever the group size of the weights.
BLOCK = 32

# Activations meet codes in int8 where the codes are numbers; nf4's are places in a table.
ROUNDING_FORMATS = tuple(name for name, grid in GRIDS.items() if grid.codebook is None)


def assert_equals_the_reference(
    y: NDArray[Any], inputs: Inputs, *, exact_activations: bool = False
) -> None:
    expected = run_reference(inputs)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    rounds = inputs.format_name in ROUNDING_FORMATS and not exact_activations
    error = np.abs(y.astype(np.float64) - expected.astype(np.float64))
    assert (error <= error_bound(inputs, BLOCK if rounds else 0)).all(), f"worst {error.max()}"


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_equals_the_reference(library: Path, kernel: str, case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    assert_equals_the_reference(run_kernel(library, inputs, kernel), inputs)


QUANTIZED_KINDS = [kind for kind in NATIVE_KINDS if kind[1] in spec.QUANTIZED_FORMATS]
ROUNDING_KINDS = [kind for kind in NATIVE_KINDS if kind[1] in ROUNDING_FORMATS]


@pytest.mark.parametrize("kind", QUANTIZED_KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_with_exact_activations_a_kernel_errs_by_float_rounding_only(
    library: Path, kernel: str, case: Case, kind: Kind
) -> None:
    inputs = inputs_of(case, *kind)
    y = run_kernel(library, inputs, kernel, exact_activations=True)
    assert_equals_the_reference(y, inputs, exact_activations=True)


@pytest.mark.parametrize("kind", ROUNDING_KINDS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_int8_activations_cost_about_one_percent(library: Path, kernel: str, kind: Kind) -> None:
    inputs = inputs_of(Case("large", (256, 384, 192, 256), 32, 2, hidden=512), *kind)
    expected = run_reference(inputs).astype(np.float64)
    error = run_kernel(library, inputs, kernel).astype(np.float64) - expected
    relative = float(np.sqrt((error**2).mean() / (expected**2).mean()))
    # The largest of 32 normal numbers is about 2.1 deviations, a step is that over 127 and rounding
    # errs by a step over the root of 12: 0.5 % of x, and again of the hidden values, which are less
    # evenly spread. Gate and up pass on an error each.
    assert 0.002 < relative < 0.02


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(seed=st.integers(0, 2**32 - 1))
def test_a_kernel_equals_the_reference_on_random_sizes(
    library: Path, kernel: str, kind: Kind, seed: int
) -> None:
    inputs = random_inputs(np.random.default_rng(seed), kind)
    assert_equals_the_reference(run_kernel(library, inputs, kernel), inputs)


@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_runtime_gives_the_bits_of_the_kernel(library: Path, case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    y = run_in_onnx_runtime(library, inputs)
    np.testing.assert_array_equal(y, run_kernel(library, inputs))
    assert_equals_the_reference(y, inputs)


def test_a_model_without_the_function_needs_only_the_library(library: Path) -> None:
    inputs = inputs_of(CASES[2], "float32")
    session = native_session(library, one_node_model(inputs, with_function=False))
    assert_equals_the_reference(session.run(None, feeds(inputs))[0], inputs)


@pytest.mark.parametrize("kind", [NATIVE_KINDS[place] for place in (0, 5, 10, 11, 12)], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_bits_do_not_depend_on_the_number_of_threads(
    library: Path, kernel: str, kind: Kind
) -> None:
    inputs = inputs_of(Case("busy", (200, 0, 33, 96), tokens=64, top_k=3, hidden=512), *kind)
    first = run_kernel(library, inputs, kernel)
    for num_threads in (2, 3, 8):
        y = run_kernel(library, inputs, kernel, num_threads)
        np.testing.assert_array_equal(y, first)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", NATIVE_KINDS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_nan_or_infinity_stays_in_its_own_row(
    library: Path, kernel: str, kind: Kind, value: float
) -> None:
    inputs = inputs_of(Case("nan", (8, 0, 33, 7), tokens=5, top_k=2), *kind)
    inputs.expert_indices[:] = [[0, 2], [3, 0], [2, 3], [1, 0], [0, 3]]
    inputs.x[2] = value
    y = run_kernel(library, inputs, kernel)
    with np.errstate(invalid="ignore"):
        expected = run_reference(inputs)
    assert np.isnan(y[2]).all()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_token_of_nan_whose_experts_are_empty_gives_zero(library: Path, kernel: str) -> None:
    inputs = inputs_of(Case("nan", (8, 0), tokens=1, top_k=1), "float32")
    inputs.x[:] = np.nan
    inputs.expert_indices[:] = 1
    assert not run_kernel(library, inputs, kernel).any()


@pytest.mark.parametrize("kernel", KERNELS)
def test_silu_is_right_over_the_range_of_float32(library: Path, kernel: str) -> None:
    gate = np.concatenate([np.linspace(-100, 100, 4001), [-3e38, -1e-30, 0.0, 1e-30, 3e38]])
    tokens = gate.size
    first, second = np.eye(2, dtype=np.float32)[:, :, None]
    inputs = Inputs(
        np.stack([gate, np.ones(tokens)], axis=1).astype(np.float32),
        np.zeros((tokens, 1), np.int64),
        np.ones((tokens, 1), np.float32),
        ((first, second, np.ones((1, 2), np.float32)),),
    )
    y = run_kernel(library, inputs, kernel)[:, 0].astype(np.float64)
    x = inputs.x[:, 0].astype(np.float64)
    with np.errstate(over="ignore"):
        expected = x / (1 + np.exp(-x))
    # Four roundings and twice that in exp. exp(-x) may be infinite from x = -88.3 on, where silu is
    # above -2^-120.
    np.testing.assert_allclose(y, expected, rtol=8 * 2**-24, atol=2.0**-120)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gelu_is_right_over_the_range_of_float32(library: Path, kernel: str) -> None:
    a = np.concatenate([np.linspace(-20, 20, 4001), [-3e38, -1e-30, 0.0, 1e-30, 3e38]])
    tokens = a.size
    first, second = np.eye(2, dtype=np.float32)[:, :, None]
    inputs = Inputs(
        np.stack([a, np.ones(tokens)], axis=1).astype(np.float32),
        np.zeros((tokens, 1), np.int64),
        np.ones((tokens, 1), np.float32),
        ((first, second, np.ones((1, 2), np.float32)),),
        activation="geglu",
    )
    y = run_kernel(library, inputs, kernel)[:, 0].astype(np.float64)
    with np.errstate(over="ignore"):
        expected = gelu(inputs.x[:, 0].astype(np.float64))
    # exp(-2 z) multiplies the three roundings of 2 z by 2 z, which is 88 where exp overflows.
    np.testing.assert_allclose(y, expected, rtol=300 * 2**-24, atol=2.0**-120)


def test_many_layers_of_one_process_do_not_disturb_each_other(library: Path) -> None:
    cases = [inputs_of(case, "float32") for case in CASES]
    layers = [layer_of(library, inputs) for inputs in cases]
    for inputs, layer in zip(cases, layers, strict=True):
        y = layer.run(inputs.x, inputs.expert_indices, inputs.routing_weights, inputs.shared_weight)
        assert_equals_the_reference(y, inputs)
