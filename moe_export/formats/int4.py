"""int4: codes from -8 to 7, the value of a group that is largest in magnitude being -8.

The scale takes the sign that this needs. A scale that is always positive would use 15 of the 16
codes.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats.matrix import QuantizedMatrix, encode, grouped
from moe_export.formats.search import least_error_scale

LIMITS = (-8, 7)
CODE_DTYPE = np.dtype(ml_dtypes.int4)


def full_scale(values_GgN: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale [G, N] with which the value that is largest in magnitude has the code -8."""
    low_GN = values_GgN.min(axis=1, initial=0)
    high_GN = values_GgN.max(axis=1, initial=0)
    scale_GN: NDArray[np.float32] = np.where(high_GN > -low_GN, high_GN, low_GN) / -8
    return scale_GN


def quantize(
    matrix_KN: NDArray[Any],
    group_size: int,
    scale_dtype: str = "float32",
    *,
    search: bool = False,
) -> QuantizedMatrix:
    """The nearest codes.

    >>> matrix = quantize(np.array([[4.0], [-1.0], [2.0]]), 32)
    >>> matrix.codes.tolist(), matrix.scale.tolist()
    ([[-8], [2], [-4]], [[-0.5]])

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
    return QuantizedMatrix(codes.astype(ml_dtypes.int4), scale, group_size)


def pack(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of ONNX: codes in row-major order, two to a byte, the first in the lower nibble.

    >>> pack(np.array([1, 2, 3, 4, -8])).tobytes().hex()
    '214308'
    """
    nibbles = codes.reshape(-1).astype(np.int8).view(np.uint8) & np.uint8(15)
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    pairs: NDArray[np.uint8] = np.bitwise_or(nibbles[0::2], nibbles[1::2] << np.uint8(4))
    return pairs


def unpack(packed: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[Any]:
    """The codes that `pack` made bytes of.

    >>> unpack(np.array([0x21, 0x43, 0x08], np.uint8), (5,)).tolist()
    [1, 2, 3, 4, -8]
    """
    nibbles = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(-1)
    codes = nibbles[: math.prod(shape)].astype(np.int8)
    return np.where(codes > 7, codes - 16, codes).astype(ml_dtypes.int4).reshape(shape)
