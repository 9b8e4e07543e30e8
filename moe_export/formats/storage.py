"""A quantized matrix as it lies in a safetensors file.

int8 codes are int8 [K, N]. Of int4, which numpy's safetensors does not know, the file holds the
bytes of `int4.pack`, [ceil(K * N / 2)] uint8. Scales are float16 [G, N], exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.formats import int4
from moe_export.formats.matrix import QuantizedMatrix

CODE_DTYPES = {"int8": np.dtype(np.int8), "int4": np.dtype(np.uint8)}
"""What the codes of each format are stored as."""

SCALE_DTYPE = np.dtype(np.float16)


def code_shape(format_name: str, shape_KN: tuple[int, int]) -> tuple[int, ...]:
    """Of the stored codes.

    >>> code_shape("int8", (5, 3)), code_shape("int4", (5, 3))
    ((5, 3), (8,))
    """
    depth, columns = shape_KN
    return (depth, columns) if format_name == "int8" else (-(-depth * columns // 2),)


def scale_shape(shape_KN: tuple[int, int], group_size: int) -> tuple[int, int]:
    """Of the stored scales."""
    return -(-shape_KN[0] // group_size), shape_KN[1]


def to_storage(matrix: QuantizedMatrix) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Codes and scales as they are stored."""
    codes = matrix.codes if matrix.codes.dtype == np.int8 else int4.pack(matrix.codes)
    return codes, matrix.scale.astype(SCALE_DTYPE)


def from_storage(
    codes: NDArray[Any],
    scale_GN: NDArray[np.float16],
    shape_KN: tuple[int, int],
    group_size: int,
) -> QuantizedMatrix:
    """The matrix again, with scales in float16.

    Args:
        codes: int8 or packed, as stored.
        scale_GN: [G, N].
        shape_KN: of the matrix.
        group_size: rows of a group.
    """
    if codes.dtype == np.uint8:
        codes = int4.unpack(codes, shape_KN)
    return QuantizedMatrix(codes, scale_GN, group_size)
