"""int8: codes from -127 to 127, the largest magnitude of a group being 127."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.formats.matrix import QuantizedMatrix, encode, grouped
from moe_export.formats.search import least_error_scale

LIMITS = (-127, 127)
CODE_DTYPE = np.dtype(np.int8)


def full_scale(values_GgN: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale [G, N] with which the largest magnitude has the code 127."""
    scale_GN: NDArray[np.float32] = np.abs(values_GgN).max(axis=1, initial=0) / 127
    return scale_GN


def quantize(
    matrix_KN: NDArray[Any],
    group_size: int,
    scale_dtype: str = "float32",
    *,
    search: bool = False,
) -> QuantizedMatrix:
    """The nearest codes.

    >>> quantize(np.array([[-2.54], [1.26]]), 32).codes.tolist()
    [[-127], [63]]

    Args:
        matrix_KN: [K, N], floats.
        group_size: 32, 64 or 128.
        scale_dtype: float32 or float16.
        search: whether each group's scale is the one that loses the least.

    Raises:
        ShapeError: if it is no matrix, or the group size is another.
        CheckpointError: if a value is infinite, not a number or too large.
    """
    values_GgN = grouped(matrix_KN, group_size)
    scale_GN = full_scale(values_GgN)
    if search:
        scale_GN = least_error_scale(values_GgN, scale_GN, LIMITS)
    codes, scale = encode(values_GgN, scale_GN, matrix_KN.shape[0], LIMITS, scale_dtype)
    return QuantizedMatrix(codes, scale, group_size)
