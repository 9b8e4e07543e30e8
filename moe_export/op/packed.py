"""A layer's experts in the kernels' own layout, as one tensor of bytes: `RaggedMoEPacked`.

The kernels read it where the model's file is mapped, so that loading moves nothing, a node has four
or five inputs instead of hundreds, and processes with the same model share its memory. It needs the
native library: there is no function of standard operators for it. The layout is the same for every
kernel, and `op/native/packed.h` describes it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError
from moe_export.op import c_interface, spec
from moe_export.op.library import library_path

MAGIC = b"moepack\0"
VERSION = 1

HEADER = struct.Struct("<8s6I2Q")
ALIGNMENT_BYTES = 64

PANEL_COLUMNS = 64
BLOCK = 32
"""Depth that a scale of a packed panel is for, whatever the group size."""

_FLOAT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CODE_BITS = {"int8": 8, "int4": 4}
_SCALE_BYTES = 2


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class PackedLayout:
    """What a packed layer holds and how many bytes that takes.

    Attributes:
        format_name: of the weights.
        group_size: that the scales were made with; 0 in the float formats.
        hidden_size: D.
        widths: of the routed experts.
        shared_width: of the shared expert; None if there is none.
        activation: of the node.
    """

    format_name: spec.Format
    group_size: int
    hidden_size: int
    widths: tuple[int, ...]
    shared_width: int | None = None
    activation: spec.Activation = "swiglu"

    @property
    def all_widths(self) -> tuple[int, ...]:
        """The shared expert's last."""
        return self.widths if self.shared_width is None else (*self.widths, self.shared_width)

    @property
    def header_bytes(self) -> int:
        """Of the header, the widths and the zeros after them."""
        return _round_up(HEADER.size + 8 * len(self.all_widths), ALIGNMENT_BYTES)

    @property
    def total_bytes(self) -> int:
        """Of the whole tensor."""
        return self.header_bytes + sum(map(self.expert_bytes, self.all_widths))

    def expert_bytes(self, width: int) -> int:
        """Of one expert, scales included.

        >>> PackedLayout("int4", 32, 64, (32,)).expert_bytes(32) == 3 * 64 * 32 * 9 // 16
        True
        """
        return self._bytes(width, self._column_bytes)

    def scale_bytes(self, width: int) -> int:
        """Of the scales of one expert."""
        if self.format_name in _FLOAT_BYTES:
            return 0
        return self._bytes(width, lambda depth: _round_up(depth, BLOCK) // BLOCK * _SCALE_BYTES)

    def header(self) -> bytes:
        """What comes before the panels."""
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

    def _bytes(self, width: int, column_bytes: Any) -> int:
        gated = self.activation in spec.GATED
        # Gate and up lie side by side, half a panel each.
        into = 2 * _round_up(width, PANEL_COLUMNS // 2) if gated else width
        return int(
            _round_up(into, PANEL_COLUMNS) * column_bytes(self.hidden_size)
            + _round_up(self.hidden_size, PANEL_COLUMNS) * column_bytes(width)
        )

    def _column_bytes(self, depth: int) -> int:
        if self.format_name in _FLOAT_BYTES:
            return depth * _FLOAT_BYTES[self.format_name]
        codes = BLOCK * _CODE_BITS[self.format_name] // 8
        return _round_up(depth, BLOCK) // BLOCK * (codes + _SCALE_BYTES)


class Packer:
    """Packs the experts of a layer, one at a time, by the native library.

    Args:
        layout: of the layer.
        path: of the library; that of the installed package if None.

    Raises:
        DependencyError: the library is absent or cannot be loaded.
    """

    def __init__(self, layout: PackedLayout, path: Path | None = None) -> None:
        self._layout = layout
        self._library = c_interface.load(path or library_path())

    def expert(self, weights: Sequence[NDArray[Any]], width: int, name: str) -> NDArray[np.uint8]:
        """The panels of one expert.

        Args:
            weights: gate, up and down or up and down, each [inputs, outputs]; quantized ones as
                codes and scales. int4 is ml_dtypes.int4, or packed as in a checkpoint.
            width: of the expert.
            name: of the expert, for messages.

        Raises:
            CheckpointError: the weights are not what the layout says.
        """
        layout = self._layout
        keep: list[Any] = []
        quantized = layout.format_name in spec.QUANTIZED_FORMATS
        step = 2 if quantized else 1
        tensors = (c_interface.Tensor * len(weights))()
        for place, array in enumerate(weights):
            is_packed = array.dtype == np.uint8
            is_down = place // step == len(spec.expert_inputs(layout.activation)) - 1
            shape = (layout.hidden_size, width)
            tensors[place] = c_interface.tensor(
                array, keep, (shape[::-1] if is_down else shape) if is_packed else None
            )
        x_dtype = weights[1].dtype.name if quantized else layout.format_name
        described = c_interface.Weights(
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
                ctypes.byref(described),
                ctypes.c_void_p(packed.ctypes.data),
                ctypes.c_uint64(packed.nbytes),
            )
        except c_interface.RefusedError as refused:
            raise CheckpointError(f"{name} cannot be packed: {refused}") from refused
        return packed
