"""Large matrices quantized and compared a block of columns at a time, by several threads.

Columns have nothing to do with each other, so the codes are those of the matrix as a whole, in a
fraction of the memory.

Legend: K depth, N columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.ahead import ahead, threads
from moe_export.formats import FORMATS, GRIDS
from moe_export.formats.matrix import QuantizedMatrix

BLOCK_ELEMENTS = 1 << 19
"""Of a block: some ten arrays of this size in float32 are in use per thread."""


def quantize_in_blocks(
    format_name: str,
    matrix_KN: NDArray[Any],
    group_size: int,
    scale_dtype: str = "float32",
    **options: Any,
) -> QuantizedMatrix:
    """As `FORMATS[format_name]`.

    Raises:
        ShapeError: if it is no matrix, or the group size is another.
        CheckpointError: if a value is infinite, not a number or too large.
    """
    quantize, grid = FORMATS[format_name], GRIDS[format_name]
    if matrix_KN.ndim != 2 or matrix_KN.size <= BLOCK_ELEMENTS:
        return quantize(matrix_KN, group_size, scale_dtype, **options)
    depth, columns = matrix_KN.shape
    groups = -(-depth // group_size)
    codes = np.empty((depth, columns), grid.code_dtype)
    scale = np.empty((groups, columns), scale_dtype)
    zero_point = np.empty((groups, columns), grid.code_dtype) if grid.has_zero_point else None
    whole = QuantizedMatrix(codes, scale, group_size, zero_point, grid.codebook)

    def one(block: slice) -> None:
        made = quantize(matrix_KN[:, block], group_size, scale_dtype, **options)
        for of_whole, part in zip(whole.parts, made.parts, strict=True):
            of_whole[:, block] = part

    for _ in ahead(_blocks(matrix_KN.shape), one, lambda _: 1, 2 * threads()):
        pass
    return whole


def squared_error(matrix: QuantizedMatrix, values_KN: NDArray[Any]) -> tuple[float, float]:
    """Sum of the squared differences between a quantized matrix and what it was made from, and of
    the squares of the latter, in float64.
    """

    def one(block: slice) -> tuple[float, float]:
        values = values_KN[:, block].astype(np.float32)
        lost = matrix.columns(block).dequantized() - values
        return _squared(lost), _squared(values)

    found = list(ahead(_blocks(values_KN.shape), one, lambda _: 1, 2 * threads()))
    return sum(lost for lost, _ in found), sum(norm for _, norm in found)


def _squared(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    depth, columns = shape
    # Not by the number of threads: sums must not depend on it.
    width = max(1, BLOCK_ELEMENTS // max(1, depth))
    for start in range(0, columns, width):
        yield slice(start, start + width)
