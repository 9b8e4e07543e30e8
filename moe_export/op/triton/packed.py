"""The experts of a layer in the layout of the CUDA kernels.

Every matrix is stored by output: gate and up as [R, D], down as [D, w] for each expert, so that
each product reads its weights along the axis it sums over, whether by vector or by tile.

Legend: D hidden, R rows (the sum of the widths), w width of an expert, E experts, K depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.formats import QuantizedMatrix
from moe_export.op.reference import Expert, Weight
from moe_export.op.spec import QUANTIZED_FORMATS, Format

RUN = 32
"""Depths that share a scale at least, and that share a nibble's place in int4: byte j of a row's
block of 64 holds depth j in its lower nibble and depth 32 + j in the upper one."""

WIDTH, ROW, DEPTH, GROUP = range(4)
"""Rows of the table, each of E entries: an expert's width, its first row in gate and up, where its
part of down begins in units of D values, and where that part's scales begin, of D scales."""


@dataclass(frozen=True)
class PackedLayer:
    """The experts side by side; a shared expert is the last.

    Attributes:
        gate: [R, depth(D)], codes or values; two codes to a byte in int4.
        up: likewise.
        down: for each expert [D, depth(w)], one after the other.
        gate_scale: [R, ceil(D / group_size)] float16; empty if the format has no scales.
        up_scale: likewise.
        down_scale: for each expert [D, ceil(w / group_size)], one after the other.
        table: int32 [4, E].
    """

    format_name: Format
    group_size: int
    hidden_size: int
    widths: tuple[int, ...]
    gate: NDArray[Any]
    up: NDArray[Any]
    down: NDArray[Any]
    gate_scale: NDArray[np.float16]
    up_scale: NDArray[np.float16]
    down_scale: NDArray[np.float16]
    table: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Of everything that goes to the device."""
        arrays = (self.gate, self.up, self.down, self.gate_scale, self.up_scale, self.down_scale)
        return sum(array.nbytes for array in arrays) + self.table.nbytes


def padded_depth(depth: int, format_name: Format) -> int:
    """The depth that a row is stored with; what is beyond the real one is zero.

    >>> padded_depth(33, "float16"), padded_depth(33, "int4"), padded_depth(65, "int4")
    (64, 64, 128)
    """
    unit = 2 * RUN if format_name == "int4" else RUN
    return -(-depth // unit) * unit


def pack(
    experts: Sequence[Expert], format_name: Format, group_size: int, hidden_size: int
) -> PackedLayer:
    """Lays the experts side by side.

    Args:
        experts: gate [D, w], up [D, w] and down [w, D] of each, the shared one last.
        format_name: of all weights.
        group_size: of a quantized format, otherwise 0.
        hidden_size: D.
    """
    widths = tuple(gate.shape[1] for gate, _, _ in experts)
    groups = [-(-w // group_size) if group_size else 0 for w in widths]
    depths = [padded_depth(w, format_name) for w in widths]
    table = np.array(
        [widths, _starts(widths), _starts(depths), _starts(groups)], dtype=np.int32
    ).reshape(4, len(widths))
    by_role = [[expert[role] for expert in experts] for role in range(3)]
    gate, up, down = (
        np.concatenate([_by_output(w, format_name).ravel() for w in r]) for r in by_role
    )
    scales = [np.concatenate([_scale(w).ravel() for w in r]) for r in by_role]
    return PackedLayer(
        format_name=format_name,
        group_size=group_size,
        hidden_size=hidden_size,
        widths=widths,
        gate=gate,
        up=up,
        down=down,
        gate_scale=scales[0],
        up_scale=scales[1],
        down_scale=scales[2],
        table=table,
    )


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]


def _scale(weight: Weight) -> NDArray[np.float16]:
    if not isinstance(weight, QuantizedMatrix):
        return np.zeros(0, np.float16)
    return np.ascontiguousarray(weight.scale.T).astype(np.float16)


def _by_output(weight: Weight, format_name: Format) -> NDArray[Any]:
    """[outputs, padded depth], codes made unsigned by adding the half of their range."""
    quantized = isinstance(weight, QuantizedMatrix)
    values = weight.codes.astype(np.int8) if isinstance(weight, QuantizedMatrix) else weight
    extra = padded_depth(values.shape[0], format_name) - values.shape[0]
    rows = np.pad(values.T, ((0, 0), (0, extra)))
    if not quantized:
        return np.ascontiguousarray(rows)
    assert format_name in QUANTIZED_FORMATS
    if format_name == "int8":
        return rows.view(np.uint8) ^ np.uint8(128)
    nibbles = (rows.view(np.uint8) & np.uint8(15)) ^ np.uint8(8)
    blocks = nibbles.reshape(rows.shape[0], rows.shape[1] // (2 * RUN), 2, RUN)
    packed: NDArray[np.uint8] = blocks[:, :, 0] | (blocks[:, :, 1] << np.uint8(4))
    return packed.reshape(rows.shape[0], rows.shape[1] // 2)
