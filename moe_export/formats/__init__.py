"""How weights are stored in fewer bits: one module per format, numpy in and out.

A quantized matrix [K, N] is codes [K, N] and scales [ceil(K / group_size), N]: a column's values
are taken in groups along K, the axis that a MatMul sums over, and value = code * scale. There is no
zero point. That is what `DequantizeLinear` of ONNX does with axis 0 and block_size = group_size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from moe_export.formats import int4, int8
from moe_export.formats.matrix import GROUP_SIZES, QuantizedMatrix

__all__ = ["FORMATS", "GROUP_SIZES", "QuantizedMatrix"]

FORMATS: dict[str, Callable[[NDArray[Any], int, str], QuantizedMatrix]] = {
    "int8": int8.quantize,
    "int4": int4.quantize,
}
"""The codec of each format."""
