"""Packed layers: the constant of a `RaggedMoEPacked` node, in the layout of the CPU kernels.

The kernels read it in the mapped file of the model. So loading copies nothing, a node has four or
five inputs instead of hundreds, and processes with the same model share memory. It needs the native
library: there is no function of standard operators for it. The layout is the same for all kernels:

    header    48 bytes: magic, version, format, activation, group size, experts, hidden size, bytes
    widths    int64 for each expert, the shared one last; then zeros to a multiple of 64 bytes
    panels    of each expert: gate and up (or up), then down, 64 columns in a panel

docs/reference/operator.md gives every byte; `tests/native/test_packed_bytes.py` pins them.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError
from moe_export.formats import TABLE, FormatFacts
from moe_export.formats.storage import scale_shape, stored_shape
from moe_export.op import c_interface, spec
from moe_export.op.library import library_path
from moe_export.op.panels import (
    ALIGNMENT_BYTES,
    PANEL_COLUMNS,
    column_bytes,
    column_scale_bytes,
    round_up,
)

MAGIC = b"moepack\0"
VERSION = 1

HEADER = struct.Struct("<8s6I2Q")


@dataclass(frozen=True)
class PackedLayout:
    """Sizes of a packed layer, and the bytes that they take.

    Attributes:
        format_name: format of the weights.
        group_size: number of depths that share a scale in the model; 0 in the float formats.
        hidden_size: D.
        widths: widths of the routed experts.
        shared_width: width of the shared expert; None without one.
        activation: activation of the layer.

    Raises:
        RecipeError: The layout does not know the format.
    """

    format_name: spec.Format
    group_size: int
    hidden_size: int
    widths: tuple[int, ...]
    shared_width: int | None = None
    activation: spec.Activation = "swiglu"

    def __post_init__(self) -> None:
        self._facts.require("packed")

    @property
    def all_widths(self) -> tuple[int, ...]:
        """Widths of all experts, the shared one last."""
        return self.widths if self.shared_width is None else (*self.widths, self.shared_width)

    @property
    def header_bytes(self) -> int:
        """Bytes of the header, the widths and the zeros after them."""
        return round_up(HEADER.size + 8 * len(self.all_widths), ALIGNMENT_BYTES)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.header_bytes + sum(map(self.expert_bytes, self.all_widths))

    def expert_bytes(self, width: int) -> int:
        """Bytes of one expert, scales and zero points included.

        >>> PackedLayout("int4", 32, 64, (32,)).expert_bytes(32) == 3 * 64 * 32 * 9 // 16
        True
        """
        return self._bytes(width, column_bytes)

    def scale_bytes(self, width: int) -> int:
        """Bytes of the scales and zero points of one expert."""
        return self._bytes(width, column_scale_bytes)

    def header(self) -> bytes:
        """Header, widths and zeros, as they stand before the panels."""
        head = HEADER.pack(
            MAGIC,
            VERSION,
            spec.FORMATS.index(self.format_name),
            spec.ACTIVATIONS.index(self.activation),
            self.group_size,
            len(self.widths),
            self.shared_width is not None,
            self.hidden_size,
            self.total_bytes,
        )
        widths = np.array(self.all_widths, "<i8").tobytes()
        return (head + widths).ljust(self.header_bytes, b"\0")

    def _bytes(self, width: int, of_column: Callable[[FormatFacts, int], int]) -> int:
        gated = self.activation in spec.GATED
        # Gate and up lie side by side, half a panel each.
        columns = 2 * round_up(width, PANEL_COLUMNS // 2) if gated else width
        return int(
            round_up(columns, PANEL_COLUMNS) * of_column(self._facts, self.hidden_size)
            + round_up(self.hidden_size, PANEL_COLUMNS) * of_column(self._facts, width)
        )

    @property
    def _facts(self) -> FormatFacts:
        return TABLE[self.format_name]


class Packer:
    """Packs the experts of a layer one at a time, by the native library.

    Args:
        layout: sizes of the layer.
        path: file of the library; that of the installed package if None.

    Raises:
        DependencyError: if the library is absent or cannot be loaded.
    """

    def __init__(self, layout: PackedLayout, path: Path | None = None) -> None:
        self._layout = layout
        self._library = c_interface.load(path or library_path())

    def expert(self, weights: Sequence[NDArray[Any]], width: int, name: str) -> NDArray[np.uint8]:
        """Packs one expert into its panels.

        Args:
            weights: gate, up and down, or up and down, each [inputs, outputs]; quantized ones as
                their parts (`spec.weight_parts`). 4-bit codes and zero points have a dtype of
                ml_dtypes, or two are in a byte as in a checkpoint.
            width: width of the expert.
            name: name of the expert in messages.

        Returns:
            Bytes of the panels, [expert_bytes(width)].

        Raises:
            CheckpointError: if the weights do not fit the layout.
        """
        layout = self._layout
        keep: list[Any] = []
        tensors = (c_interface.Tensor * len(weights))()
        for place, array in enumerate(weights):
            tensors[place] = self._tensor(array, place, width, name, keep)
        quantized = layout.format_name in spec.QUANTIZED_FORMATS
        x_dtype = weights[1].dtype.name if quantized else layout.format_name
        expert = c_interface.Weights(
            1,
            layout.activation.encode(),
            layout.format_name.encode(),
            layout.group_size,
            c_interface.ONNX_TYPES["float32" if x_dtype == "bfloat16" else x_dtype],
            0,
            tensors,
            len(weights),
        )
        packed = np.empty(layout.expert_bytes(width), np.uint8)
        try:
            c_interface.call(
                self._library.moe_export_pack_expert,
                ctypes.byref(expert),
                ctypes.c_void_p(packed.ctypes.data),
                ctypes.c_uint64(packed.nbytes),
            )
        except c_interface.RefusedError as refused:
            raise CheckpointError(f"{name} cannot be packed: {refused}") from refused
        return packed

    def _tensor(
        self, array: NDArray[Any], place: int, width: int, name: str, keep: list[Any]
    ) -> c_interface.Tensor:
        """Describes weight number `place` of the expert; codes may be stored two to a byte."""
        layout = self._layout
        grid = TABLE[layout.format_name].grid
        if grid is None or grid.storage_bits == 8 or array.dtype != np.uint8:
            return c_interface.tensor(array, keep)
        role, part = divmod(place, len(spec.weight_parts(layout.format_name)))
        is_down = role == len(spec.expert_inputs(layout.activation)) - 1
        shape = (width, layout.hidden_size) if is_down else (layout.hidden_size, width)
        if part > 0:
            shape = scale_shape(shape, layout.group_size)
        if array.shape != (expected := stored_shape(layout.format_name, shape)):
            raise CheckpointError(
                f"{name} cannot be packed: tensor {place} of its {layout.format_name} weights is "
                f"{list(array.shape)} bytes, expected {list(expected)}"
            )
        data = np.ascontiguousarray(array)
        return c_interface.tensor_of_bytes(data, grid.code_dtype.name, shape, keep)
