"""Quantizing by blocks of columns is quantizing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moe_export.errors import CheckpointError, ShapeError
from moe_export.formats import FORMATS, blocks
from moe_export.formats.blocks import quantize_in_blocks, squared_error


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", 300)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("shape", [(96, 41), (70, 3), (33, 1), (400, 5), (0, 9), (64, 0)])
def test_codes_and_scales_are_those_of_the_whole(
    name: str, search: bool, shape: tuple[int, int]
) -> None:
    matrix_KN = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    whole = FORMATS[name](matrix_KN, 32, "float16", search=search)
    found = quantize_in_blocks(name, matrix_KN, 32, "float16", search=search)
    assert found.codes.dtype == whole.codes.dtype
    np.testing.assert_array_equal(found.codes.astype(np.int8), whole.codes.astype(np.int8))
    np.testing.assert_array_equal(found.scale, whole.scale)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_squared_error_is_that_of_the_whole_whatever_the_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    matrix_KN = np.random.default_rng(1).standard_normal((96, 41)).astype(np.float16)
    made = FORMATS["int4"](matrix_KN, 32)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    expected = squared_error(made, matrix_KN)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert squared_error(made, matrix_KN) == expected
    wide = matrix_KN.astype(np.float64)
    lost = np.square(made.dequantized() - wide).sum()
    # The difference of one float32 rounding in each of the dequantized values.
    assert expected == pytest.approx((lost, np.square(wide).sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("matrix", "error"),
    [
        (np.zeros(3), ShapeError),
        (np.full((64, 64), np.inf), CheckpointError),
        (np.full((64, 64), 1e30), CheckpointError),
    ],
)
def test_what_cannot_be_quantized_is_refused(matrix: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        quantize_in_blocks("int4", matrix, 32, "float16")
