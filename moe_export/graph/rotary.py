"""Rotary tables, which are computed when they are written.

Legend: P positions, F rotary frequencies (half of the entries of a head that are rotated).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.families.rope import frequencies
from moe_export.graph.weights import ChunkedTensor
from moe_export.op.spec import Dtype

CHUNK_POSITIONS = 1 << 14
"""Positions whose angles are computed at once."""

Function = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class RotaryTable(ChunkedTensor):
    """Cosines or sines [P, F] of the rotary angles.

    Args:
        name: Name of the initializer.
        dtype: Dtype of the table.
        spec: Sizes of the model.
        function: Cosine or sine.
    """

    def __init__(self, name: str, dtype: Dtype, spec: ModelSpec, function: Function) -> None:
        self._cast_to, self._spec, self._function = np.dtype(dtype), spec, function
        shape = (spec.max_positions, spec.rotary_dim // 2)
        super().__init__(name, ir.DataType.from_numpy(self._cast_to), shape)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the table, `CHUNK_POSITIONS` rows at a time."""
        for start in range(0, self._spec.max_positions, CHUNK_POSITIONS):
            stop = min(start + CHUNK_POSITIONS, self._spec.max_positions)
            table_PF = rotary_table(self._spec, self._function, np.arange(start, stop))
            yield table_PF.astype(self._cast_to)


def rotary_table(
    spec: ModelSpec, function: Function, position_P: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Cosine or sine [P, F] of position times frequency.

    Frequencies and angles are rounded to float32 where transformers rounds them, because the model
    was trained with the rounded angles. Cosine and sine are then computed in float64.
    """
    frequency_F = frequencies(spec.rope_theta, spec.rotary_dim, spec.stretch)
    angle_PF = np.outer(position_P.astype(np.float32), frequency_F).astype(np.float64)
    scale = 1.0 if spec.stretch is None else spec.stretch.table_scale
    return scale * function(angle_PF)
