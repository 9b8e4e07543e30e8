"""Layout of a layer's experts on a GPU, as the CUDA kernels read them.

Every matrix is stored by output: gate and up as [R, D], down as [D, w] for each expert. Each
product then reads its weights along the axis it sums over, by vector or by tile.

Legend: D hidden, R rows (the sum of the widths), w width of an expert, E experts, K depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.formats import GRIDS, QuantizedMatrix
from moe_export.op.reference import Expert, Weight
from moe_export.op.spec import Activation, Format, expert_inputs

RUN = 32
"""Shortest group of depths that share a scale. In 4-bit formats, byte j of a row's block of 64
depths holds depth j in its lower nibble and depth 32 + j in the upper one."""

# Names of formats, not grids: functions that the kernels call may read no objects.
QUANTIZED = tuple(GRIDS)
FOUR_BITS = tuple(name for name, grid in GRIDS.items() if grid.bits == 4)
WITH_ZERO_POINTS = tuple(name for name, grid in GRIDS.items() if grid.has_zero_point)

WIDTH, ROW, DEPTH, GROUP = range(4)
"""Rows of the table, each with E entries: width of the expert; its first row in gate and up; start
of its part of down, in units of D values; start of that part's scales, in units of D scales."""


@dataclass(frozen=True)
class DeviceLayout:
    """Arrays of a layer in the layout of the device, its experts side by side, the shared one last.

    Attributes:
        format_name: format of the weights on the device.
        group_size: number of depths that share a scale; 0 in the float formats.
        hidden_size: D.
        widths: widths of the experts, [E].
        gate: values or codes [R, depth(D)], in 4-bit formats two codes to a byte; empty where the
            activation has no gate.
        up: values or codes [R, depth(D)]; never empty.
        down: values or codes [D, depth(w)] of each expert, one after the other.
        gate_scale: scales [R, ceil(D / group_size)] float16; empty in the float formats.
        up_scale: scales [R, ceil(D / group_size)] float16.
        down_scale: scales [D, ceil(w / group_size)] of each expert, one after the other, float16.
        gate_zero: zero points, uint8, in the shape of gate_scale; empty in formats without them.
        up_zero: zero points, uint8, in the shape of up_scale.
        down_zero: zero points, uint8, in the shape of down_scale.
        codebook: values of the codes of nf4, [16] float32; otherwise empty.
        table: places of the experts, [4, E] int32; its rows are WIDTH, ROW, DEPTH and GROUP.
        columns: column of the hidden values' factors for each row of the routed experts, int32;
            empty if the rows of an expert take the columns 0 to w - 1.
        activation: activation of the layer.
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
    gate_zero: NDArray[np.uint8]
    up_zero: NDArray[np.uint8]
    down_zero: NDArray[np.uint8]
    codebook: NDArray[np.float32]
    table: NDArray[np.int32]
    columns: NDArray[np.int32]
    activation: Activation = "swiglu"

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays that go to the device, by name, in order."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def codes_per_byte(format_name: str) -> int:
    """Codes in a stored byte: 2 in the 4-bit formats, 1 in all others, floats too.

    >>> codes_per_byte("nf4"), codes_per_byte("uint8"), codes_per_byte("float16")
    (2, 1, 1)
    """
    return 2 if format_name in FOUR_BITS else 1


def is_quantized(format_name: str) -> bool:
    """True if the weights are codes with scales."""
    return format_name in QUANTIZED


def has_zero_points(format_name: str) -> bool:
    """True if each group has a zero point beside its scale."""
    return format_name in WITH_ZERO_POINTS


def values_per_load(format_name: str) -> int:
    """Number of values, or of bytes of codes, in the 16 bytes that a thread loads at a time.

    >>> values_per_load("bfloat16"), values_per_load("int4")
    (8, 16)
    """
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    return 16 // sizes.get(format_name, 1)


def device_format(format_name: Format, x_dtype: str) -> Format:
    """Format of the weights on the device: bfloat16 becomes float16 where x is float16.

    >>> device_format("bfloat16", "float16"), device_format("bfloat16", "float32")
    ('float16', 'bfloat16')
    """
    return "float16" if (format_name, x_dtype) == ("bfloat16", "float16") else format_name


def padded_depth(depth: int, format_name: Format) -> int:
    """Depth of a stored row: `depth` rounded up to 32, or 64 in 4-bit formats, and zero-filled.

    >>> padded_depth(33, "float16"), padded_depth(33, "int4"), padded_depth(65, "int4")
    (64, 64, 128)
    """
    unit = RUN * codes_per_byte(format_name)
    return -(-depth // unit) * unit


def lay_out(
    experts: Sequence[Expert],
    format_name: Format,
    group_size: int,
    hidden_size: int,
    x_dtype: str,
    activation: Activation = "swiglu",
    columns: NDArray[np.int32] | None = None,
) -> DeviceLayout:
    """Lays the experts side by side.

    Args:
        experts: gate [D, w], up [D, w] and down [w, D] of each expert, the shared one last; no gate
            where the activation has none.
        format_name: format of all weights.
        group_size: number of depths that share a scale; 0 in the float formats.
        hidden_size: D.
        x_dtype: dtype of x; where it is float16, bfloat16 weights are rounded to float16 here,
            once, instead of at every product.
        activation: activation of the layer.
        columns: `units` of the node, if it has them.
    """
    if device_format(format_name, x_dtype) != format_name:
        format_name = device_format(format_name, x_dtype)
        experts = [tuple(np.asarray(w).astype(format_name) for w in expert) for expert in experts]
    widths = tuple(expert[0].shape[1] for expert in experts)
    groups = [-(-w // group_size) if group_size else 0 for w in widths]
    depths = [padded_depth(w, format_name) for w in widths]
    table = np.array(
        [widths, _starts(widths), _starts(depths), _starts(groups)], dtype=np.int32
    ).reshape(4, len(widths))
    grid = GRIDS.get(format_name)
    codebook = None if grid is None else grid.codebook
    parts: dict[str, NDArray[Any]] = {"gate": np.zeros(0, np.uint8)}
    parts |= {"gate_scale": _NO_SCALES, "gate_zero": _NO_ZEROS}
    for place, role in enumerate(expert_inputs(activation)):
        weights = [expert[place] for expert in experts]
        parts[role] = np.concatenate([_by_output(w, format_name).ravel() for w in weights])
        parts[f"{role}_scale"] = np.concatenate([_scale(w).ravel() for w in weights])
        parts[f"{role}_zero"] = np.concatenate([_zero_point(w).ravel() for w in weights])
    return DeviceLayout(
        format_name=format_name,
        group_size=group_size,
        hidden_size=hidden_size,
        widths=widths,
        **parts,
        codebook=np.zeros(0, np.float32) if codebook is None else codebook,
        table=table,
        columns=np.zeros(0, np.int32) if columns is None else columns,
        activation=activation,
    )


_NO_SCALES = np.zeros(0, np.float16)
_NO_ZEROS = np.zeros(0, np.uint8)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]


def _scale(weight: Weight) -> NDArray[np.float16]:
    if not isinstance(weight, QuantizedMatrix):
        return _NO_SCALES
    return np.ascontiguousarray(weight.scale.T).astype(np.float16)


def _zero_point(weight: Weight) -> NDArray[np.uint8]:
    if not isinstance(weight, QuantizedMatrix) or weight.zero_point is None:
        return _NO_ZEROS
    return np.ascontiguousarray(weight.zero_point.T).astype(np.uint8)


def _by_output(weight: Weight, format_name: Format) -> NDArray[Any]:
    """Values or codes [outputs, padded depth].

    Half the range is added to the codes of int8 and int4, which makes them unsigned. The padding
    holds the code of zero.
    """
    if not isinstance(weight, QuantizedMatrix):
        extra = padded_depth(weight.shape[0], format_name) - weight.shape[0]
        return np.ascontiguousarray(np.pad(weight.T, ((0, 0), (0, extra))))
    grid = GRIDS[format_name]
    codes = weight.codes.astype(np.int8 if grid.limits[0] < 0 else np.uint8)
    extra = padded_depth(codes.shape[0], format_name) - codes.shape[0]
    rows = np.pad(codes.T, ((0, 0), (0, extra))).view(np.uint8)
    if grid.limits[0] < 0:
        rows = rows ^ np.uint8(1 << (grid.bits - 1))
    if grid.bits == 8:
        return np.ascontiguousarray(rows)
    nibbles = rows & np.uint8(15)
    blocks = nibbles.reshape(rows.shape[0], rows.shape[1] // (2 * RUN), 2, RUN)
    byte_pairs: NDArray[np.uint8] = blocks[:, :, 0] | (blocks[:, :, 1] << np.uint8(4))
    return byte_pairs.reshape(rows.shape[0], rows.shape[1] // 2)
