"""A quantized matrix, and what the formats share in making one.

Legend: K depth, N columns, G groups along K.
"""

from __future__ import annotations

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
        codes: [K, N], int8 or ml_dtypes.int4.
        scale: [G, N] with G = ceil(K / group_size), float32 or float16. Every value is a float16
            number whatever the dtype: the native kernels keep it in 16 bits.
        group_size: rows of a group; the last group may have fewer.
    """

    codes: NDArray[Any]
    scale: NDArray[Any]
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[K, N]."""
        return self.codes.shape

    def dequantized(self) -> NDArray[np.float32]:
        """[K, N], exact: a code of 8 bits times a scale of 11 fits into float32's 24."""
        # By way of int8: from int4, ml_dtypes converts to float32 at a tenth of the speed.
        codes = self.codes.astype(np.int8, copy=False).astype(np.float32)
        for group, scale_N in enumerate(self.scale.astype(np.float32)):
            codes[group * self.group_size : (group + 1) * self.group_size] *= scale_N
        return codes


def grouped(matrix_KN: NDArray[Any], group_size: int) -> NDArray[np.float32]:
    """The matrix as [G, group_size, N], the last group filled up with zeros.

    Raises:
        ShapeError: if it is no matrix, or the group size is none of GROUP_SIZES.
        CheckpointError: if a value is infinite or not a number.
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


def encode(
    values_GgN: NDArray[np.float32],
    scale_GN: NDArray[np.float32],
    depth: int,
    limits: tuple[int, int],
    scale_dtype: str,
) -> tuple[NDArray[np.int8], NDArray[Any]]:
    """Codes [depth, N] in int8 for the scales, rounded to float16, and those scales.

    Raises:
        CheckpointError: if a scale is too large for float16.
    """
    with np.errstate(over="ignore"):
        rounded_GN = scale_GN.astype(np.float16)
    if np.isinf(rounded_GN).any():
        raise CheckpointError(
            f"weights reach {np.abs(values_GgN).max():.3g}, too large for scales in float16"
        )
    codes = rounded_codes(values_GgN, rounded_GN.astype(np.float32), limits).astype(np.int8)
    flat = codes.reshape(codes.shape[0] * codes.shape[1], codes.shape[2])
    return flat[:depth], rounded_GN.astype(scale_dtype)


def rounded_codes(
    values_GgN: NDArray[np.float32], scale_GN: NDArray[np.float32], limits: tuple[int, int]
) -> NDArray[np.float32]:
    """Value over scale to the nearest whole number within `limits`, ties to even; 0 over 0."""
    divisor_GN = np.where(scale_GN == 0, np.float32(np.inf), scale_GN)
    codes: NDArray[np.float32] = np.rint(values_GgN / divisor_GN[:, None]).clip(*limits)
    return codes
