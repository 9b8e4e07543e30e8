"""Codes mean what their format says, in every kernel and to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from moe_export.formats import GRIDS, QuantizedMatrix
from moe_export.op import spec
from moe_export.testing.cases import Case, Inputs, inputs_of
from moe_export.testing.executors import run_reference
from moe_export.testing.native_executors import KERNELS, NATIVE_QUANTIZED, run_kernel

WIDTH, HIDDEN = 40, 72


def matrix_of(
    format_name: spec.Format, codes: NDArray[Any], scale: NDArray[Any], zero_point: NDArray[Any]
) -> QuantizedMatrix:
    """Codes in groups of 32, with zero points where the format has them."""
    grid = GRIDS[format_name]
    return QuantizedMatrix(
        codes.astype(grid.code_dtype),
        scale,
        32,
        zero_point.astype(grid.code_dtype) if grid.has_zero_point else None,
        grid.codebook,
    )


def every_code(format_name: spec.Format, random: np.random.Generator) -> QuantizedMatrix:
    """Every code of the format, with zero points all over its range, [WIDTH, HIDDEN]."""
    low, high = GRIDS[format_name].limits
    span = high - low + 1
    codes = low + np.arange(WIDTH * HIDDEN).reshape(WIDTH, HIDDEN) % span
    zero_point = low + (np.arange(2 * HIDDEN) * 7).reshape(2, HIDDEN) % span
    scale = random.uniform(-1, 1, (2, HIDDEN)).astype(np.float16).astype(np.float32)
    return matrix_of(format_name, codes, scale, zero_point)


def unit_rows(format_name: spec.Format) -> QuantizedMatrix:
    """Ones on the diagonal and zeros beside it, [HIDDEN, WIDTH]."""
    zero, one = (7, 15) if format_name == "nf4" else (0, 1)
    zero_point = np.full((3, WIDTH), 3)
    if GRIDS[format_name].has_zero_point:
        zero, one = 3, 4
    codes = np.where(np.eye(HIDDEN, WIDTH) == 1, one, zero)
    return matrix_of(format_name, codes, np.ones((3, WIDTH), np.float32), zero_point)


@pytest.mark.parametrize("format_name", NATIVE_QUANTIZED)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_code_has_its_exact_value(
    library: Path, kernel: str, format_name: spec.Format
) -> None:
    down = every_code(format_name, np.random.default_rng(3))
    inputs = Inputs(
        np.eye(WIDTH, HIDDEN, dtype=np.float32),
        np.zeros((WIDTH, 1), np.int64),
        np.ones((WIDTH, 1), np.float32),
        ((unit_rows(format_name), down),),
        format_name=format_name,
        group_size=32,
        activation="relu",
    )
    # Each token is a unit vector and so are its hidden values: nothing is rounded but what the
    # format itself rounds, the product with a value of a codebook.
    y = run_kernel(library, inputs, kernel, exact_activations=True)
    np.testing.assert_array_equal(y, down.dequantized())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("zero_is_last", [False, True])
@pytest.mark.parametrize("format_name", spec.ZERO_POINT_FORMATS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_largest_sums_of_codes_do_not_overflow(
    library: Path, kernel: str, format_name: spec.Format, zero_is_last: bool, sign: int
) -> None:
    last = GRIDS[format_name].limits[1]

    def furthest(zero: int, scale: float) -> QuantizedMatrix:
        codes, zero_point = np.full((32, WIDTH), last - zero), np.full((1, WIDTH), zero)
        return matrix_of(format_name, codes, np.full((1, WIDTH), scale, np.float32), zero_point)

    first_unit = np.zeros((WIDTH, 32), np.int64)
    first_unit[0] = 1
    ones, zeros = np.ones((2, 32), np.float32), np.zeros((2, 32), np.int64)
    # The gate is positive and large, so that silu leaves it as it is; up has either sign.
    gate = furthest(0 if sign > 0 else last, 2.0**-4)
    up = furthest(last if zero_is_last else 0, 2.0**-12)
    inputs = Inputs(
        np.full((6, 32), sign, np.float32),
        np.zeros((6, 1), np.int64),
        np.ones((6, 1), np.float32),
        ((gate, up, matrix_of(format_name, first_unit, ones, zeros)),),
        format_name=format_name,
        group_size=32,
    )
    # All 32 activations have the code 127 or -127, all weights the largest distance from zero.
    expected = 32 * last * 2.0**-4 * 32 * last * 2.0**-12 * (-sign if zero_is_last else sign)
    # Scales of activations and products with them are rounded a few times.
    np.testing.assert_allclose(
        run_kernel(library, inputs, kernel), np.full((6, 32), expected), rtol=16 * 2**-24
    )


def with_zero_points(matrix: QuantizedMatrix, offset: int, dtype: Any) -> QuantizedMatrix:
    """Copies a matrix into the format with zero points, with the same values."""
    codes = (matrix.codes.astype(np.int32) + offset).astype(dtype)
    zero_point = np.full(matrix.scale.shape, offset).astype(dtype)
    return QuantizedMatrix(codes, matrix.scale, matrix.group_size, zero_point)


@pytest.mark.parametrize("exact_activations", [False, True])
@pytest.mark.parametrize(
    ("symmetric", "convert"),
    [
        ("int8", lambda matrix: ("uint8", with_zero_points(matrix, 128, np.uint8))),
        ("int4", lambda matrix: ("uint4", with_zero_points(matrix, 8, ml_dtypes.uint4))),
    ],
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_zero_point_in_the_middle_gives_the_bits_of_the_symmetric_format(
    library: Path,
    kernel: str,
    symmetric: spec.Format,
    convert: Callable[[Any], tuple[spec.Format, QuantizedMatrix]],
    exact_activations: bool,
) -> None:
    case = Case("mixed", (8, 0, 1, 33, 7, 64), tokens=23, top_k=3, hidden=81, shared_width=50)
    inputs = inputs_of(case, "float32", symmetric, 32)
    assert inputs.shared is not None
    format_name = convert(inputs.experts[0][0])[0]
    same = Inputs(
        inputs.x,
        inputs.expert_indices,
        inputs.routing_weights,
        tuple(tuple(convert(w)[1] for w in expert) for expert in inputs.experts),
        tuple(convert(w)[1] for w in inputs.shared),
        inputs.shared_weight,
        format_name,
        32,
    )
    np.testing.assert_array_equal(run_reference(same), run_reference(inputs))
    ys = (
        run_kernel(library, each, kernel, exact_activations=exact_activations)
        for each in (same, inputs)
    )
    np.testing.assert_array_equal(*ys)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nf4_needs_no_wish_for_exact_activations(library: Path, kernel: str) -> None:
    inputs = inputs_of(Case("nf4", (100, 33), 9, 2, hidden=130), "float32", "nf4", 64)
    exact = run_kernel(library, inputs, kernel, exact_activations=True)
    np.testing.assert_array_equal(run_kernel(library, inputs, kernel), exact)
