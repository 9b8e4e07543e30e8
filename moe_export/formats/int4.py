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

from moe_export.formats.facts import EVERYWHERE, FormatFacts
from moe_export.formats.grid import Grid


def fit(values_GgN: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
    """The scale [G, N] with which the value that is largest in magnitude has the code -8.

    >>> fit(np.array([[[4.0], [-1.0], [2.0]]], np.float32))[0].item()
    -0.5
    """
    low_GN = values_GgN.min(axis=1, initial=0)
    high_GN = values_GgN.max(axis=1, initial=0)
    scale_GN: NDArray[np.float32] = np.where(high_GN > -low_GN, high_GN, low_GN) / -8
    return scale_GN, None


FORMAT = FormatFacts(
    name="int4",
    grid=Grid(4, np.dtype(ml_dtypes.int4), (-8, 7), fit),
    uses=frozenset({"experts", "dense"}),
    executors=EVERYWHERE,
    panel_bits=4,
    cuda_dtypes=("float32", "float16"),
)


def pack(codes: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of ONNX: codes in row-major order, two to a byte, the first in the lower nibble.

    >>> pack(np.array([1, 2, 3, 4, -8])).tobytes().hex()
    '214308'
    """
    flat = codes.reshape(-1)
    # Codes in a byte each have their four bits lowest, whatever the dtype.
    in_bytes = flat if flat.itemsize == 1 else flat.astype(np.int8)
    nibbles = in_bytes.view(np.uint8) & np.uint8(15)
    nibbles = np.append(nibbles, np.zeros(nibbles.size % 2, np.uint8))
    pairs: NDArray[np.uint8] = np.bitwise_or(nibbles[0::2], nibbles[1::2] << np.uint8(4))
    return pairs


def unpack(
    packed: NDArray[np.uint8], shape: tuple[int, ...], dtype: Any = ml_dtypes.int4
) -> NDArray[Any]:
    """The codes that `pack` made bytes of, as ml_dtypes.int4 or ml_dtypes.uint4.

    >>> unpack(np.array([0x21, 0x43, 0x08], np.uint8), (5,)).tolist()
    [1, 2, 3, 4, -8]
    >>> unpack(np.array([0x21, 0x43, 0x08], np.uint8), (5,), ml_dtypes.uint4).tolist()
    [1, 2, 3, 4, 8]
    """
    nibbles = np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(-1)
    codes = nibbles[: math.prod(shape)].astype(np.int8)
    if np.dtype(dtype) == ml_dtypes.int4:
        codes = np.where(codes > 7, codes - 16, codes)
    return codes.astype(dtype).reshape(shape)
