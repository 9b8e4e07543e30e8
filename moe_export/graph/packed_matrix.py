"""Packed weight of a `LinearPacked` node, packed when it is written.

Legend: K depth (inputs), N columns (outputs).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.graph.quantized import stored_matrix
from moe_export.graph.weights import CHUNK_BYTES, CheckpointTensor, ChunkedTensor, Read
from moe_export.op.packed_linear import LinearLayout, LinearPacker
from moe_export.op.panels import PANEL_COLUMNS
from moe_export.op.reference import Weight
from moe_export.op.spec import Dtype


class PackedMatrix(ChunkedTensor):
    """Matrices of the checkpoint side by side, with their biases, as one packed weight.

    Args:
        name: Name of the initializer.
        spec: Sizes of the model and names of its tensors.
        sources: Names of the matrices, all of one format and depth.
        biases: Names of their biases; empty without biases.
        dtype: Dtype of matrices that are not quantized.
        read: Function that reads a tensor of the checkpoint by name.
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec,
        sources: Sequence[str],
        biases: Sequence[str],
        dtype: Dtype,
        read: Read,
    ) -> None:
        first = spec.tensors[sources[0]]
        self._format = spec.quantization.format_of(first.role, first.layer)
        self.layout = LinearLayout(
            self._format or dtype,
            spec.quantization.group_size if self._format else 0,
            first.shape[1],
            sum(spec.tensors[source].shape[0] for source in sources),
            bool(biases),
        )
        super().__init__(name, ir.DataType.UINT8, (self.layout.total_bytes,))
        self._spec, self._float, self._read = spec, dtype, read
        self._sources, self._biases = tuple(sources), tuple(biases)

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the header, the bias, and then some panels at a time.

        Raises:
            CheckpointError: A source is missing or damaged, or a value does not fit the format.
            DependencyError: The native library, which packs, is absent.
        """
        packer = LinearPacker(self.layout)
        yield np.frombuffer(self.layout.header(), np.uint8)
        if self._biases:
            # In the model's dtype first, as in the portable layout.
            bias_N = self._cast(self._biases[0], self._concatenated(self._biases))
            yield self.layout.bias(bias_N).view(np.uint8)
        panel_bytes = self.layout.panel_bytes(PANEL_COLUMNS)
        step = max(1, CHUNK_BYTES // panel_bytes) * PANEL_COLUMNS
        ranges = [slice(at, at + step) for at in range(0, self.layout.columns, step)]
        for weight_KN in self._columns(ranges):
            yield packer.panels(weight_KN, self._sources[0])

    def _columns(self, ranges: Sequence[slice]) -> Iterator[Weight]:
        """Columns [K, n] of the matrices, for one range after the other."""
        if self._format is not None:
            matrix = stored_matrix(self._spec, self._sources, self._format, self._read)
            yield from (matrix.columns(columns) for columns in ranges)
            return
        stored_NK = self._concatenated(self._sources)
        for columns in ranges:
            yield self._cast(self._sources[0], stored_NK[columns]).T

    def _cast(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        tensor = CheckpointTensor(
            name, self._float, values.shape, (name,), lambda _: values, transpose=False
        )
        return tensor.numpy()

    def _concatenated(self, names: Sequence[str]) -> NDArray[Any]:
        return np.concatenate([self._read(name) for name in names])
