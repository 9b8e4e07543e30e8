"""A quantized matrix as it lies in a safetensors file: under its own name the codes, and beside it
the other parts, under that name with a suffix.

Codes of 8 bits are int8 or uint8 [K, N]. Of 4 bits, which numpy's safetensors does not know, the
file holds the bytes of `int4.pack`, uint8 [ceil(K * N / 2)]. Scales are float16 [G, N], exactly;
zero points are uint8 [G, N], or packed like the codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.formats import GRIDS, int4
from moe_export.formats.grid import Grid
from moe_export.formats.matrix import QuantizedMatrix

SCALE_DTYPE = np.dtype(np.float16)

SCALE_SUFFIX, ZERO_POINT_SUFFIX = ".scale", ".zero_point"


def stored_dtype(format_name: str) -> np.dtype[Any]:
    """Dtype of codes and zero points in a file.

    >>> stored_dtype("int8"), stored_dtype("int4")
    (dtype('int8'), dtype('uint8'))
    """
    grid = GRIDS[format_name]
    return grid.code_dtype if grid.storage_bits == 8 else np.dtype(np.uint8)


CODE_DTYPES = frozenset(map(stored_dtype, GRIDS))
"""Dtypes of the codes of all formats in files."""


def stored_shape(format_name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of codes or zero points in a file.

    Args:
        format_name: Name of a quantized format.
        shape: Shape before packing.

    >>> stored_shape("int8", (5, 3)), stored_shape("int4", (5, 3))
    ((5, 3), (8,))
    """
    return shape if GRIDS[format_name].storage_bits == 8 else (-(-math.prod(shape) // 2),)


def scale_shape(shape_KN: tuple[int, int], group_size: int) -> tuple[int, int]:
    """Shape [G, N] of the scales, and of the zero points before they are packed."""
    return -(-shape_KN[0] // group_size), shape_KN[1]


def stored_parts(
    format_name: str, shape_KN: tuple[int, int], group_size: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every part of a matrix, by its suffix, in the order of
    `QuantizedMatrix.parts`.

    >>> {suffix: shape for suffix, (shape, _) in stored_parts("uint4", (40, 3), 32).items()}
    {'': (60,), '.scale': (2, 3), '.zero_point': (3,)}
    """
    dtype, shape_GN = stored_dtype(format_name), scale_shape(shape_KN, group_size)
    parts: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "": (stored_shape(format_name, shape_KN), dtype),
        SCALE_SUFFIX: (shape_GN, SCALE_DTYPE),
    }
    if GRIDS[format_name].has_zero_point:
        parts[ZERO_POINT_SUFFIX] = (stored_shape(format_name, shape_GN), dtype)
    return parts


def to_storage(matrix: QuantizedMatrix) -> dict[str, NDArray[Any]]:
    """The arrays of a matrix as they are stored, by suffix."""
    parts = {"": _packed(matrix.codes), SCALE_SUFFIX: matrix.scale.astype(SCALE_DTYPE)}
    if matrix.zero_point is not None:
        parts[ZERO_POINT_SUFFIX] = _packed(matrix.zero_point)
    return parts


def from_storage(
    format_name: str,
    parts: Sequence[NDArray[Any]],
    shape_KN: tuple[int, int],
    group_size: int,
) -> QuantizedMatrix:
    """The matrix that stored arrays hold, with scales in float16.

    Args:
        format_name: Name of a quantized format.
        parts: Arrays as stored, in the order of `stored_parts`.
        shape_KN: Shape of the matrix.
        group_size: Rows of a group.
    """
    grid = GRIDS[format_name]
    codes, scale, *zero_points = parts
    zero_point = None
    if grid.has_zero_point:
        zero_point = _unpacked(zero_points[0], scale_shape(shape_KN, group_size), grid)
    codes = _unpacked(codes, shape_KN, grid)
    return QuantizedMatrix(codes, scale, group_size, zero_point, grid.codebook)


def _packed(codes: NDArray[Any]) -> NDArray[Any]:
    return codes if codes.dtype in (np.int8, np.uint8) else int4.pack(codes)


def _unpacked(stored: NDArray[Any], shape: tuple[int, ...], grid: Grid) -> NDArray[Any]:
    return stored if grid.storage_bits == 8 else int4.unpack(stored, shape, grid.code_dtype)
