"""A matrix in the nearest codes of a format.

Legend: K depth, N columns, G groups along K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.formats.grid import Grid
from moe_export.formats.matrix import QuantizedMatrix, grouped, stored_scale
from moe_export.formats.search import least_error_scale


def quantize(
    grid: Grid,
    matrix_KN: NDArray[Any],
    group_size: int,
    scale_dtype: str = "float32",
    *,
    search: bool = False,
) -> QuantizedMatrix:
    """A matrix in the nearest codes of a grid.

    Args:
        grid: Codes of the format.
        matrix_KN: Floats [K, N].
        group_size: Rows of a group: 32, 64 or 128.
        scale_dtype: Dtype of the scales: float32 or float16.
        search: True to take the scale of least squared error for each group.

    Raises:
        ShapeError: the array is no matrix, or the group size is none of `GROUP_SIZES`.
        CheckpointError: a value is infinite, not a number or too large.
    """
    values_GgN = grouped(matrix_KN, group_size)
    scale_GN, zero_GN = grid.fit(values_GgN)
    if search:
        scale_GN = least_error_scale(values_GgN, scale_GN, zero_GN, grid)
    scale_GN = stored_scale(scale_GN, float(np.abs(values_GgN).max(initial=0)))
    codes = grid.codes(values_GgN, scale_GN, zero_GN)
    flat = codes.reshape(codes.shape[0] * codes.shape[1], codes.shape[2])[: len(matrix_KN)]
    return quantized_matrix(grid, flat, scale_GN, zero_GN, group_size, scale_dtype)


def quantized_matrix(
    grid: Grid,
    codes_KN: NDArray[np.float32],
    scale_GN: NDArray[np.float32],
    zero_GN: NDArray[np.float32] | None,
    group_size: int,
    scale_dtype: str,
) -> QuantizedMatrix:
    """A matrix from codes, scales and zero points that are still float32.

    A group whose scale is 0 gets the zero point 0 and codes 0.
    """
    zero_point = None
    if zero_GN is not None:
        is_zero_GN = scale_GN == 0
        if is_zero_GN.any():
            codes_KN[np.repeat(is_zero_GN, group_size, axis=0)[: len(codes_KN)]] = 0
            zero_GN = np.where(is_zero_GN, np.float32(0), zero_GN)
        zero_point = _cast(zero_GN, grid)
    scale = scale_GN.astype(scale_dtype)
    return QuantizedMatrix(_cast(codes_KN, grid), scale, group_size, zero_point, grid.codebook)


def _cast(codes: NDArray[np.float32], grid: Grid) -> NDArray[Any]:
    # Cast by way of 8 bits: the direct cast of ml_dtypes from float to 4 bits is slow.
    in_8_bits = codes.astype(np.int8 if grid.limits[0] < 0 else np.uint8)
    return in_8_bits.astype(grid.code_dtype, copy=False)
