"""Rounding of weights to codes by the native library.

Gives bit for bit what `formats.rounding` and `formats.search` define, much faster. Weights are
[outputs, inputs] as in a checkpoint, so the values of a group lie together.

Legend: K depth (inputs), N columns (outputs), G groups along K.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError, RecipeError, ShapeError
from moe_export.formats import GRIDS, TABLE
from moe_export.formats.matrix import GROUP_SIZES, QuantizedMatrix
from moe_export.op.c_interface import ONNX_TYPES, load
from moe_export.op.library import library_path

WEIGHT_DTYPES = ("float32", "float16", "bfloat16")

_NOT_FINITE, _SCALE_TOO_LARGE = 1, 2


class _Rounding(ctypes.Structure):
    """Structure `MoeRounding` of `op/native/cpu/c_api.h`."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("format", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("search", ctypes.c_int32),
        ("depth", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group_size", ctypes.c_int64),
        ("codes", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero_point", ctypes.c_void_p),
    )


def quantize(
    format_name: str, weight_NK: NDArray[Any], group_size: int, *, search: bool = False
) -> QuantizedMatrix:
    """Rounds a matrix to the nearest codes, with scales in float16.

    Args:
        format_name: quantized format, a key of `formats.GRIDS`.
        weight_NK: weight [N, K], float32, float16 or bfloat16.
        group_size: depths that share a scale: 32, 64 or 128.
        search: True to choose each group's scale by the least error.

    Returns:
        The matrix [K, N].

    Raises:
        ShapeError: if the weight or the group size is not as above.
        CheckpointError: if a value is infinite, NaN or too large.
        RecipeError: if the library does not know the format.
        DependencyError: if the library is absent.
    """
    is_weight = weight_NK.ndim == 2 and weight_NK.dtype.name in WEIGHT_DTYPES
    if not is_weight or group_size not in GROUP_SIZES:
        raise ShapeError(
            f"a weight {weight_NK.dtype} {list(weight_NK.shape)} with groups of {group_size}: "
            f"expected two axes of {', '.join(WEIGHT_DTYPES)} and groups of "
            f"{', '.join(map(str, GROUP_SIZES))}"
        )
    TABLE[format_name].require("rounding")
    grid = GRIDS[format_name]
    columns, depth = weight_NK.shape
    groups = -(-depth // group_size)
    codes = np.empty((depth, columns), np.uint8)
    scale = np.empty((groups, columns), np.float16)
    zero_point = np.empty((groups, columns), np.uint8) if grid.has_zero_point else None
    weight = np.ascontiguousarray(weight_NK)
    job = _job(format_name, weight, group_size, codes, scale, zero_point)
    job.search = search
    refused = _library().moe_export_quantize(ctypes.byref(job))
    if refused == _NOT_FINITE:
        raise CheckpointError(
            f"a weight of shape {list(weight.shape)} holds infinity or NaN, which have no code"
        )
    if refused == _SCALE_TOO_LARGE:
        largest = float(np.abs(weight.astype(np.float32)).max(initial=0))
        raise CheckpointError(f"weights reach {largest:.3g}, too large for scales in float16")
    if refused:
        raise RecipeError(TABLE[format_name].refusal("rounding"))
    return QuantizedMatrix(
        codes.view(grid.code_dtype),
        scale,
        group_size,
        None if zero_point is None else zero_point.view(grid.code_dtype),
        grid.codebook,
    )


def squared_error(
    format_name: str, matrix: QuantizedMatrix, weight_NK: NDArray[Any]
) -> tuple[float, float]:
    """Squared error of a quantized matrix, and the squared norm of its source, in float64.

    Args:
        format_name: format of the matrix.
        matrix: quantized matrix [K, N].
        weight_NK: weight that it was made from, [N, K].

    Raises:
        RecipeError: if the library does not know the format.
        DependencyError: if the library is absent.
    """
    TABLE[format_name].require("rounding")
    weight = np.ascontiguousarray(weight_NK)
    codes, scale, *zero_points = matrix.parts
    zero_point = np.ascontiguousarray(zero_points[0]).view(np.uint8) if zero_points else None
    codes = np.ascontiguousarray(codes).view(np.uint8)
    scale = np.ascontiguousarray(scale.astype(np.float16, copy=False))
    job = _job(format_name, weight, matrix.group_size, codes, scale, zero_point)
    lost_N, norm_N = np.empty(len(weight)), np.empty(len(weight))
    refused = _library().moe_export_squared_error(
        ctypes.byref(job), *(ctypes.c_void_p(sums.ctypes.data) for sums in (lost_N, norm_N))
    )
    if refused:
        raise RecipeError(TABLE[format_name].refusal("rounding"))
    return float(lost_N.sum()), float(norm_N.sum())


def _job(
    format_name: str,
    weight_NK: NDArray[Any],
    group_size: int,
    codes: NDArray[np.uint8],
    scale: NDArray[np.float16],
    zero_point: NDArray[np.uint8] | None,
) -> _Rounding:
    """Describes a rounding for the library; the arrays must live as long as it."""
    columns, depth = weight_NK.shape
    return _Rounding(
        weight_NK.ctypes.data,
        format_name.encode(),
        ONNX_TYPES[weight_NK.dtype.name],
        0,
        depth,
        columns,
        group_size,
        codes.ctypes.data,
        scale.ctypes.data,
        None if zero_point is None else zero_point.ctypes.data,
    )


@cache
def _library() -> ctypes.CDLL:
    return load(library_path())
