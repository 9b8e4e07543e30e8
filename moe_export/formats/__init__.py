"""Formats of stored weights: one module per kind of format, numpy in and out.

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

from moe_export.formats import floats, int4, int8, nf4, uint
from moe_export.formats.facts import Executor, FormatFacts, Use
from moe_export.formats.grid import Grid
from moe_export.formats.matrix import GROUP_SIZES, QuantizedMatrix
from moe_export.formats.rounding import quantize

__all__ = [
    "FORMATS",
    "GRIDS",
    "GROUP_SIZES",
    "TABLE",
    "Executor",
    "FormatFacts",
    "Grid",
    "QuantizedMatrix",
    "Use",
    "known_to",
]

TABLE: dict[str, FormatFacts] = {
    facts.name: facts
    for facts in (
        floats.FLOAT32,
        floats.FLOAT16,
        floats.BFLOAT16,
        int8.FORMAT,
        int4.FORMAT,
        uint.UINT8,
        uint.UINT4,
        nf4.FORMAT,
    )
}
"""Every format by its name. A format's place is its number in the native library and in packed
weights, so that a new one goes to the end."""


def known_to(executor: Executor) -> tuple[str, ...]:
    """Names of the formats that an executor knows, in the order of `TABLE`.

    >>> known_to("rounding")
    ('int8', 'int4', 'uint8', 'uint4', 'nf4')
    """
    return tuple(name for name, facts in TABLE.items() if executor in facts.executors)


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
        """Quantizes a matrix [K, N] in groups of `group_size` along K."""
        ...


GRIDS: dict[str, Grid] = {
    name: facts.grid for name, facts in TABLE.items() if facts.grid is not None
}
"""The codes of each quantized format, in the order of `TABLE`."""

FORMATS: dict[str, Codec] = {name: partial(quantize, grid) for name, grid in GRIDS.items()}
"""The codec of each quantized format."""
