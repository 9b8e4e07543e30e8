"""Columns of the hidden scale that belong to the hidden units of pruned experts.

Legend: R rows (the sum of the widths).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.families.features import UNITS_ROLE
from moe_export.graph.weights import ChunkedTensor, Read
from moe_export.op.spec import Layout


class UnitsTensor(ChunkedTensor):
    """Column of the hidden scale for each row of the experts as a node stores them, [R] int32.

    A quantized expert of width 0 is one hidden unit of zeros in the portable layout
    (`quantized.ragged_moe_weight`); it takes column 0.

    Args:
        spec: Sizes of the model and names of its tensors.
        layer: Number of the layer.
        read: Function that reads a tensor of the checkpoint by name.
        layout: Layout of the experts' weights.
    """

    def __init__(self, spec: ModelSpec, layer: int, read: Read, layout: Layout) -> None:
        is_padded = layout == "portable" and spec.quantization.format_of("gate", layer) is not None
        self._widths = spec.widths[layer]
        self._stored = [max(width, 1) if is_padded else width for width in self._widths]
        name = spec.name(UNITS_ROLE, layer)
        super().__init__(name, ir.DataType.INT32, (sum(self._stored),))
        self._read = read

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the columns of each expert."""
        units_R = self._read(str(self.name)).astype(np.int32)
        blocks = np.split(units_R, np.cumsum(self._widths)[:-1])
        for block, stored in zip(blocks, self._stored, strict=True):
            yield np.pad(block, (0, stored - len(block)))
