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
from moe_export.formats import TABLE, FormatFacts
from moe_export.formats.storage import scale_shape, stored_shape
from moe_export.op import c_interface, spec
from moe_export.op.library import library_path

MAGIC = b"moepack\0"
VERSION = 1

HEADER = struct.Struct("<8s6I2Q")
ALIGNMENT_BYTES = 64

PANEL_COLUMNS = 64
BLOCK = 32
"""Depth that a scale of a packed panel is for, whatever the group size."""

_SCALE_BYTES, _ZERO_POINT_BYTES = 2, 1


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

    Raises:
        RecipeError: the layout does not know the format.
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
        """Of one expert, scales and zero points included.

        >>> PackedLayout("int4", 32, 64, (32,)).expert_bytes(32) == 3 * 64 * 32 * 9 // 16
        True
        """
        return self._bytes(width, self._column_bytes)

    def scale_bytes(self, width: int) -> int:
        """Of the scales and zero points of one expert."""
        if not self._facts.is_quantized:
            return 0
        return self._bytes(width, lambda depth: -(-depth // BLOCK) * self._block_scale_bytes)

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
        bits = self._facts.panel_bits
        assert bits is not None  # `packed` is among the executors
        if not self._facts.is_quantized:
            return depth * bits // 8
        return -(-depth // BLOCK) * (BLOCK * bits // 8 + self._block_scale_bytes)

    @property
    def _block_scale_bytes(self) -> int:
        return _SCALE_BYTES + (_ZERO_POINT_BYTES if self._facts.has_zero_point else 0)

    @property
    def _facts(self) -> FormatFacts:
        return TABLE[self.format_name]


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
                their parts (`spec.weight_parts`). Codes and zero points of 4 bits are of ml_dtypes,
                or packed as in a checkpoint.
            width: of the expert.
            name: of the expert, for messages.

        Raises:
            CheckpointError: the weights are not what the layout says.
        """
        layout = self._layout
        keep: list[Any] = []
        tensors = (c_interface.Tensor * len(weights))()
        for place, array in enumerate(weights):
            tensors[place] = self._tensor(array, place, width, name, keep)
        quantized = layout.format_name in spec.QUANTIZED_FORMATS
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

    def _tensor(
        self, array: NDArray[Any], place: int, width: int, name: str, keep: list[Any]
    ) -> c_interface.Tensor:
        """Weight number `place` of the expert, which may be packed as in a checkpoint."""
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
