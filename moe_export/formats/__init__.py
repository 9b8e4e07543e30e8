"""How weights are stored in fewer bits: one module per format, numpy in and out.

A quantized matrix [K, N] is codes [K, N] and scales [ceil(K / group_size), N]: a column's values
are taken in groups along K, the axis that a MatMul sums over, and value = code * scale. There is no
zero point. That is what `DequantizeLinear` of ONNX does with axis 0 and block_size = group_size.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from moe_export.formats import int4, int8
from moe_export.formats.matrix import GROUP_SIZES, QuantizedMatrix

__all__ = ["FORMATS", "GROUP_SIZES", "QuantizedMatrix"]


class Codec(Protocol):
    """The function that quantizes to one format."""

    def __call__(
        self,
        matrix_KN: NDArray[Any],
        group_size: int,
        scale_dtype: str = "float32",
        *,
        search: bool = False,
    ) -> QuantizedMatrix:
        """A matrix [K, N] in groups of `group_size` along K."""
        ...


FORMATS: dict[str, Codec] = {
    "int8": int8.quantize,
    "int4": int4.quantize,
}
"""The codec of each format."""
