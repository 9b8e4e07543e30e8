"""How weights are stored in fewer bits: one module per kind of format, numpy in and out.

A quantized matrix [K, N] is codes [K, N] and scales [ceil(K / group_size), N]: a column's values
are taken in groups along K, the axis that a MatMul sums over, and

    value = code * scale                    int8, int4
    value = (code - zero_point) * scale     uint8, uint4, with zero points as the scales are
    value = codebook[code] * scale          nf4

The first two are what `DequantizeLinear` of ONNX does with axis 0 and block_size = group_size.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from numpy.typing import NDArray

from moe_export.formats import int4, int8, nf4, uint
from moe_export.formats.grid import Grid
from moe_export.formats.matrix import GROUP_SIZES, QuantizedMatrix
from moe_export.formats.rounding import quantize

__all__ = ["FORMATS", "GRIDS", "GROUP_SIZES", "Grid", "QuantizedMatrix"]


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


GRIDS: dict[str, Grid] = {
    "int8": int8.GRID,
    "int4": int4.GRID,
    "uint8": uint.UINT8,
    "uint4": uint.UINT4,
    "nf4": nf4.GRID,
}
"""The facts of each format, in the order of `moe_export.op.spec`."""

FORMATS: dict[str, Codec] = {name: partial(quantize, grid) for name, grid in GRIDS.items()}
"""The codec of each format."""
