"""Packed weight of a layer: all experts in the CPU kernels' layout, packed when it is written.

Legend: K depth (inputs), N columns (outputs).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.families.stored import part_names
from moe_export.graph.weights import CheckpointTensor, ChunkedTensor, Read
from moe_export.op.packed import PackedLayout, Packer
from moe_export.op.spec import EXPERT_INPUTS, Dtype


def packed_layout(spec: ModelSpec, layer: int, dtype: Dtype) -> PackedLayout:
    """Format, sizes and widths of a layer's packed weight."""
    format_name = spec.quantization.format_of("gate", layer)
    return PackedLayout(
        format_name or spec.quantization.float_of("gate", layer) or dtype,
        spec.quantization.group_size if format_name else 0,
        spec.hidden_size,
        spec.widths[layer],
        spec.shared_widths[layer],
    )


class PackedTensor(ChunkedTensor):
    """Weight of a `RaggedMoEPacked` node; at most one expert is in memory at a time.

    Args:
        name: Name of the initializer.
        spec: Sizes of the model and names of its tensors.
        layer: Number of the layer.
        dtype: Dtype of weights that are neither quantized nor stored as bfloat16.
        read: Function that reads a tensor of the checkpoint by name.
    """

    def __init__(self, name: str, spec: ModelSpec, layer: int, dtype: Dtype, read: Read) -> None:
        self.layout = packed_layout(spec, layer, dtype)
        super().__init__(name, ir.DataType.UINT8, (self.layout.total_bytes,))
        self._spec, self._layer, self._float, self._read = spec, layer, dtype, read

    def chunks(self) -> Iterator[NDArray[Any]]:
        """Yields the header, and then the panels of each expert.

        Raises:
            CheckpointError: A source is missing or damaged, or a value does not fit the format.
            DependencyError: The native library, which packs, is absent.
        """
        packer = Packer(self.layout)
        yield np.frombuffer(self.layout.header(), np.uint8)
        for expert, width in enumerate(self.layout.all_widths):
            is_shared = expert == self._spec.num_experts
            prefix, number = ("shared_", None) if is_shared else ("", expert)
            names = [self._spec.name(prefix + r, self._layer, number) for r in EXPERT_INPUTS]
            weights = [part for name in names for part in self._parts(name)]
            yield packer.expert(weights, width, names[0])

    def _parts(self, name: str) -> list[NDArray[Any]]:
        """Matrix [K, N] in the model's dtype or its own, or the stored parts of a quantized one."""
        tensor = self._spec.tensors[name]
        if self._spec.quantization.format_of(tensor.role, tensor.layer) is not None:
            return [self._read(part) for part in part_names(self._spec, name)]
        dtype = self._spec.quantization.float_of(tensor.role, tensor.layer) or self._float
        stored = CheckpointTensor(name, dtype, tensor.shape, (name,), self._read, transpose=True)
        return [stored.numpy()]
