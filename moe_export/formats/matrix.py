"""A quantized matrix, and what the formats share in making one.

Legend: K depth, N columns, G groups along K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError, ShapeError

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class QuantizedMatrix:
    """Codes and scales of a matrix [K, N].

    Attributes:
        codes: Codes [K, N], int8, uint8, ml_dtypes.int4 or ml_dtypes.uint4.
        scale: Scales [G, N] with G = ceil(K / group_size), float32 or float16. Every value is a
            float16 number whatever the dtype: the native kernels keep it in 16 bits.
        group_size: Rows of a group; the last group may have fewer.
        zero_point: Code that means 0, [G, N] in the dtype of codes; None if that is code 0.
        codebook: Value of each code, float32 [16]; None if that is the code itself.
    """

    codes: NDArray[Any]
    scale: NDArray[Any]
    group_size: int
    zero_point: NDArray[Any] | None = None
    codebook: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape [K, N]."""
        return self.codes.shape

    @property
    def parts(self) -> tuple[NDArray[Any], ...]:
        """Codes, scales and zero points, if there are any, in the order of a `RaggedMoE` node."""
        return (self.codes, self.scale) + (() if self.zero_point is None else (self.zero_point,))

    def columns(self, part: slice) -> QuantizedMatrix:
        """The matrix of some columns."""
        zero_point = None if self.zero_point is None else self.zero_point[:, part]
        codes, scale = self.codes[:, part], self.scale[:, part]
        return QuantizedMatrix(codes, scale, self.group_size, zero_point, self.codebook)

    def dequantized(self) -> NDArray[np.float32]:
        """The values [K, N]. They are exact without a codebook, since the difference of two codes
        of 8 bits times a scale of 11 fits into float32's 24; with one, products are rounded.
        """
        # Cast by way of 8 bits: ml_dtypes converts 4 bits to float32 at a tenth of the speed.
        codes = _in_8_bits(self.codes)
        points = codes.astype(np.float32) if self.codebook is None else self.codebook[codes]
        for group, scale_N in enumerate(self.scale.astype(np.float32)):
            rows = slice(group * self.group_size, (group + 1) * self.group_size)
            if self.zero_point is not None:
                points[rows] -= _in_8_bits(self.zero_point[group]).astype(np.float32)
            points[rows] *= scale_N
        return points


def side_by_side(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one format and depth as one, their columns in order."""
    first = matrices[0]
    codes, scale, *zero_points = (
        np.concatenate(parts, axis=1)
        for parts in zip(*(matrix.parts for matrix in matrices), strict=True)
    )
    zero_point = zero_points[0] if zero_points else None
    return QuantizedMatrix(codes, scale, first.group_size, zero_point, first.codebook)


def _in_8_bits(codes: NDArray[Any]) -> NDArray[Any]:
    return codes.astype(np.uint8 if codes.dtype.name.startswith("uint") else np.int8, copy=False)


def grouped(matrix_KN: NDArray[Any], group_size: int) -> NDArray[np.float32]:
    """The matrix as [G, group_size, N], the last group filled up with zeros.

    Raises:
        ShapeError: the array is no matrix, or the group size is none of GROUP_SIZES.
        CheckpointError: a value is infinite or not a number.
    """
    if matrix_KN.ndim != 2 or group_size not in GROUP_SIZES:
        raise ShapeError(
            f"a matrix of shape {list(matrix_KN.shape)} with groups of {group_size}: expected two "
            f"axes and groups of {', '.join(map(str, GROUP_SIZES))}"
        )
    values = matrix_KN.astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"a matrix of shape {list(values.shape)} holds infinity or NaN, which have no code"
        )
    depth, columns = values.shape
    groups = -(-depth // group_size)
    padded = np.pad(values, ((0, groups * group_size - depth), (0, 0)))
    return padded.reshape(groups, group_size, columns)


def in_float16(scale_GN: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
    """Scales rounded to float16 numbers.

    Args:
        scale_GN: Scales [G, N].
        largest: Largest magnitude among the weights, for the message.

    Raises:
        CheckpointError: a scale is too large for float16.
    """
    with np.errstate(over="ignore"):
        rounded_GN = scale_GN.astype(np.float16)
    if np.isinf(rounded_GN).any():
        raise CheckpointError(f"weights reach {largest:.3g}, too large for scales in float16")
    return rounded_GN.astype(np.float32)


def stored_scale(scale_GN: NDArray[np.float32], largest: float) -> NDArray[np.float32]:
    """Scales rounded to float16 numbers, with zeros that have no sign."""
    return in_float16(scale_GN, largest) + np.float32(0)
