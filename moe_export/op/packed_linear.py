"""Packed matrices: the constant of a `LinearPacked` node, in the layout of the CPU kernels.

As with packed layers (`op/packed.py`) the kernels read it in the mapped file, and it needs the
native library. The layout is the same for all kernels:

    header    64 bytes: magic, version, format, group size, bias or not, depth, columns, bytes
    bias      float32 for each column, then zeros to a multiple of 64 bytes; absent without a bias
    panels    64 columns each

docs/reference/operator.md gives every byte; `tests/native/test_linear.py` pins them.

Legend: K depth (inputs), N columns (outputs).
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError
from moe_export.formats import TABLE, FormatFacts, QuantizedMatrix
from moe_export.op import c_interface, spec
from moe_export.op.library import library_path
from moe_export.op.panels import (
    ALIGNMENT_BYTES,
    PANEL_COLUMNS,
    column_bytes,
    column_scale_bytes,
    round_up,
)
from moe_export.op.reference import Weight

MAGIC = b"moelin\0\0"
VERSION = 1

HEADER = struct.Struct("<8s4I3Q16x")


@dataclass(frozen=True)
class LinearLayout:
    """Sizes of a packed matrix, and the bytes that they take.

    Attributes:
        format_name: Format of the matrix.
        group_size: Number of depths that share a scale in the model; 0 in the float formats.
        depth: K.
        columns: N.
        has_bias: True if a bias lies before the panels.

    Raises:
        RecipeError: The layout does not know the format.
    """

    format_name: spec.Format
    group_size: int
    depth: int
    columns: int
    has_bias: bool = False

    def __post_init__(self) -> None:
        self._facts.require("packed")

    @property
    def bias_bytes(self) -> int:
        """Bytes of the bias and the zeros after it."""
        return round_up(4 * self.columns, ALIGNMENT_BYTES) if self.has_bias else 0

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scales and zero points."""
        return self._whole_columns(self.columns) * column_scale_bytes(self._facts, self.depth)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole tensor.

        >>> LinearLayout("int4", 32, 64, 100).total_bytes == 64 + 128 * 64 * 9 // 16
        True
        """
        return HEADER.size + self.bias_bytes + self.panel_bytes(self.columns)

    def panel_bytes(self, columns: int) -> int:
        """Bytes of the panels of some columns, scales and zero points included."""
        return self._whole_columns(columns) * column_bytes(self._facts, self.depth)

    def header(self) -> bytes:
        """Header, as it stands before the bias."""
        return HEADER.pack(
            MAGIC,
            VERSION,
            spec.FORMATS.index(self.format_name),
            self.group_size,
            self.has_bias,
            self.depth,
            self.columns,
            self.total_bytes,
        )

    def bias(self, bias_N: NDArray[Any]) -> NDArray[np.float32]:
        """Bias as it stands before the panels."""
        padded = np.zeros(self.bias_bytes // 4, np.float32)
        padded[: self.columns] = bias_N
        return padded

    @staticmethod
    def _whole_columns(columns: int) -> int:
        return round_up(columns, PANEL_COLUMNS)

    @property
    def _facts(self) -> FormatFacts:
        return TABLE[self.format_name]


class LinearPacker:
    """Packs columns of a matrix into panels, by the native library.

    Args:
        layout: Sizes of the matrix.
        path: File of the library; that of the installed package if None.

    Raises:
        DependencyError: The library is absent or cannot be loaded.
    """

    def __init__(self, layout: LinearLayout, path: Path | None = None) -> None:
        self._layout = layout
        self._library = c_interface.load(path or library_path())

    def panels(self, weight_KN: Weight, name: str) -> NDArray[np.uint8]:
        """Panels of some columns of the matrix, which begin and end with whole panels.

        Args:
            weight_KN: Columns of the matrix, in the layout's format.
            name: Name of the matrix in messages.

        Raises:
            CheckpointError: The matrix does not fit the layout.
        """
        layout = self._layout
        if isinstance(weight_KN, QuantizedMatrix):
            arrays, x_dtype = weight_KN.parts, weight_KN.scale.dtype.name
        else:
            arrays, x_dtype = (weight_KN,), layout.format_name
        keep: list[Any] = []
        weights = c_interface.linear_weights(
            arrays,
            layout.format_name,
            layout.group_size,
            "float32" if x_dtype == "bfloat16" else x_dtype,
            keep,
        )
        panels = np.empty(layout.panel_bytes(weight_KN.shape[1]), np.uint8)
        try:
            c_interface.call(
                self._library.moe_export_linear_pack,
                ctypes.byref(weights),
                ctypes.c_void_p(panels.ctypes.data),
                ctypes.c_uint64(panels.nbytes),
            )
        except c_interface.RefusedError as refused:
            raise CheckpointError(f"{name} cannot be packed: {refused}") from refused
        return panels
