"""The experts of a layer in the layout of the CUDA kernels.

Every matrix is stored by output: gate and up as [R, D], down as [D, w] for each expert, so that
each product reads its weights along the axis it sums over, whether by vector or by tile.

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
"""Depths that share a scale at least, and that share a nibble's place in four bits: byte j of a
row's block of 64 holds depth j in its lower nibble and depth 32 + j in the upper one."""

# Words and no grids, for the kernels ask too.
QUANTIZED = tuple(GRIDS)
FOUR_BITS = tuple(name for name, grid in GRIDS.items() if grid.bits == 4)
WITH_ZERO_POINTS = tuple(name for name, grid in GRIDS.items() if grid.has_zero_point)

WIDTH, ROW, DEPTH, GROUP = range(4)
"""Rows of the table, each of E entries: an expert's width, its first row in gate and up, where its
part of down begins in units of D values, and where that part's scales begin, of D scales."""


@dataclass(frozen=True)
class PackedLayer:
    """The experts side by side; a shared expert is the last.

    Attributes:
        gate: [R, depth(D)], codes or values; two codes to a byte in four bits. Empty where the
            activation has no gate.
        up: likewise, never empty for that.
        down: for each expert [D, depth(w)], one after the other.
        gate_scale: [R, ceil(D / group_size)] float16; empty if the format has no scales.
        up_scale: likewise.
        down_scale: for each expert [D, ceil(w / group_size)], one after the other.
        gate_zero: zero points, in the shape of gate_scale, uint8; empty if the format has none.
        up_zero: likewise.
        down_zero: likewise.
        codebook: [16] float32 of nf4, otherwise empty.
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
    gate_zero: NDArray[np.uint8]
    up_zero: NDArray[np.uint8]
    down_zero: NDArray[np.uint8]
    codebook: NDArray[np.float32]
    table: NDArray[np.int32]
    activation: Activation = "swiglu"

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that goes to the device, by name and in order."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, np.ndarray)}


def codes_per_byte(format_name: str) -> int:
    """2 in the formats of four bits; 1 in the others, of floats too.

    >>> codes_per_byte("nf4"), codes_per_byte("uint8"), codes_per_byte("float16")
    (2, 1, 1)
    """
    return 2 if format_name in FOUR_BITS else 1


def is_quantized(format_name: str) -> bool:
    """Whether weights are codes with scales."""
    return format_name in QUANTIZED


def has_zero_points(format_name: str) -> bool:
    """Whether groups have a zero point beside the scale."""
    return format_name in WITH_ZERO_POINTS


def values_per_load(format_name: str) -> int:
    """Values, or bytes of codes, in the 16 bytes that a thread loads at a time.

    >>> values_per_load("bfloat16"), values_per_load("int4")
    (8, 16)
    """
    sizes = {"float32": 4, "float16": 2, "bfloat16": 2}
    return 16 // sizes.get(format_name, 1)


def device_format(format_name: Format, x_dtype: str) -> Format:
    """What weights of a format are on the device, where products run in x's dtype.

    >>> device_format("bfloat16", "float16"), device_format("bfloat16", "float32")
    ('float16', 'bfloat16')
    """
    return "float16" if (format_name, x_dtype) == ("bfloat16", "float16") else format_name


def padded_depth(depth: int, format_name: Format) -> int:
    """The depth that a row is stored with; what is beyond the real one is zero.

    >>> padded_depth(33, "float16"), padded_depth(33, "int4"), padded_depth(65, "int4")
    (64, 64, 128)
    """
    unit = RUN * codes_per_byte(format_name)
    return -(-depth // unit) * unit


def pack(
    experts: Sequence[Expert],
    format_name: Format,
    group_size: int,
    hidden_size: int,
    x_dtype: str,
    activation: Activation = "swiglu",
) -> PackedLayer:
    """Lays the experts side by side.

    Args:
        experts: gate [D, w], up [D, w] and down [w, D] of each, the shared one last; without gate
            where the activation has none.
        format_name: of all weights.
        group_size: of a quantized format, otherwise 0.
        hidden_size: D.
        x_dtype: of x; bfloat16 is rounded to float16 here where x is, instead of at every product.
        activation: of the layer.
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
    return PackedLayer(
        format_name=format_name,
        group_size=group_size,
        hidden_size=hidden_size,
        widths=widths,
        **parts,
        codebook=np.zeros(0, np.float32) if codebook is None else codebook,
        table=table,
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
    """[outputs, padded depth]; the codes of int8 and int4 made unsigned by adding the half of their
    range, and codes beyond the depth those of a padding with zeros.
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
    packed: NDArray[np.uint8] = blocks[:, :, 0] | (blocks[:, :, 1] << np.uint8(4))
    return packed.reshape(rows.shape[0], rows.shape[1] // 2)
