"""Tests that the native library rounds like the definition in numpy, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from moe_export.errors import CheckpointError, ShapeError
from moe_export.formats import FORMATS, known_to
from moe_export.op import rounding as native
from moe_export.testing.native_executors import KERNELS


def weight_NK(shape: tuple[int, int], dtype: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    """Normal values, with columns of zeros, of one sign, of one large value and of tiny ones."""
    values = np.random.default_rng(seed).standard_normal(shape) * 0.02
    values[0:1] = 0
    values[1:2] *= -0.0
    values[2:3] = np.abs(values[2:3])
    values[3:4] = -np.abs(values[3:4])
    values[4:5, 0:1] = 3
    values[5:6] *= 2e-7
    return values.astype(dtype)


@pytest.mark.parametrize("name", known_to("rounding"))
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(41, 96), (3, 70), (1, 33), (16, 400), (9, 0), (0, 64)])
def test_codes_scales_and_zero_points_are_those_of_the_definition(
    name: str, search: bool, group_size: int, dtype: Any, shape: tuple[int, int]
) -> None:
    weight = weight_NK(shape, dtype)
    defined = FORMATS[name](weight.T, group_size, "float16", search=search)
    actual = native.quantize(name, weight, group_size, search=search)
    for part, expected in zip(actual.parts, defined.parts, strict=True):
        assert (part.dtype, part.shape) == (expected.dtype, expected.shape)
        assert part.tobytes() == expected.tobytes()
    np.testing.assert_array_equal(actual.dequantized(), defined.dequantized())


ROUNDED_BY_ALL = """
import hashlib
from moe_export.formats import known_to
from moe_export.op import rounding
from tests.formats.test_native import np, weight_NK
for name in known_to("rounding"):
    made = rounding.quantize(name, weight_NK((41, 400), np.float32), 128, search=True)
    print(name, [hashlib.sha256(part.tobytes()).hexdigest() for part in made.parts])
"""


def test_every_instruction_set_rounds_to_the_same_codes() -> None:
    def rounded_with(kernel: str) -> str:
        environment = os.environ | {"MOE_EXPORT_KERNEL": kernel}
        command = [sys.executable, "-c", ROUNDED_BY_ALL]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    first, *others = [rounded_with(kernel) for kernel in KERNELS]
    assert first.count("[") == len(known_to("rounding"))
    assert others == [first] * len(others)


@pytest.mark.parametrize("name", known_to("rounding"))
def test_the_search_does_not_depend_on_how_numpy_lays_out_the_matrix(name: str) -> None:
    weight = weight_NK((64, 256), np.float32, seed=3)
    actual = FORMATS[name](weight.T, 128, "float16", search=True)
    other = FORMATS[name](np.ascontiguousarray(weight.T), 128, "float16", search=True)
    np.testing.assert_array_equal(actual.scale, other.scale)


@pytest.mark.parametrize("name", known_to("rounding"))
def test_the_squared_error_is_that_of_what_codes_mean(name: str) -> None:
    weight = weight_NK((41, 96), np.float16, seed=1)
    made = native.quantize(name, weight, 32)
    wide = weight.T.astype(np.float64)
    lost = np.square(made.dequantized() - wide).sum()
    # The difference of one float32 rounding in each of the dequantized values.
    expected = pytest.approx((lost, np.square(wide).sum()), rel=1e-6)
    assert native.squared_error(name, made, weight) == expected


@pytest.mark.parametrize(
    ("weight", "group_size", "error"),
    [
        (np.zeros(3), 32, ShapeError),
        (np.zeros((3, 3)), 32, ShapeError),  # float64
        (np.zeros((3, 3), np.float32), 48, ShapeError),
        (np.full((64, 64), np.inf, np.float32), 32, CheckpointError),
        (np.full((64, 64), np.nan, np.float16), 32, CheckpointError),
        (np.full((64, 64), 1e30, np.float32), 32, CheckpointError),
    ],
)
@pytest.mark.parametrize("name", known_to("rounding"))
def test_what_cannot_be_quantized_is_refused(
    name: str, weight: Any, group_size: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        native.quantize(name, weight, group_size)
