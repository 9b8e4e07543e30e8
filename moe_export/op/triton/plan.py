"""Choice of kernels, their shapes and their grids: shared by `driver`, `build` and the library.

Legend: T tokens, S slots per token (K, and one more with a shared expert), E experts with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moe_export.op.spec import Format
from moe_export.op.triton.device_layout import RUN, codes_per_byte, padded_depth

Path = Literal["rows", "tiles"]

Factors = Literal["", "scaled", "up_scaled"]
"""Factors per token in a kernel: none, a row that `gate` and `up` share, or a row for each."""

ROWS_PATH_TOKENS = 8
"""Most tokens for which each token reads its weights for itself: they seldom share an expert."""

PAIRS_PER_EXPERT = 16
"""Most pairs per expert, on average, for which tiles are of the small kind."""

MOST_SLOTS = 16
"""Most slots of a token in the rows path; tokens with more go through tiles."""

GROUP_BLOCK = 1024
COPY_BLOCK = 1024


@dataclass(frozen=True)
class Shape:
    """Sizes of the work of one program.

    Attributes:
        pairs: pairs in a tile; 1 in the rows path.
        rows: rows of the weights, which are columns of the result.
        columns: stored values of a row per step, or bytes of codes.
        warps: warps of 32 threads.
        stages: stages of the software pipeline; fewer where shared memory does not suffice.
    """

    pairs: int
    rows: int
    columns: int
    warps: int
    stages: int


SMALL_TILE_PAIRS = 16
LARGE_TILE_PAIRS = 128

WARPGROUP_ARCHITECTURES = (90, 100)
"""Architectures whose products keep their sums apart from other registers, or need fewer."""


def shape_of(
    kernel: str, format_name: Format, x_dtype: str, pairs: int, architecture: int
) -> Shape:
    """Shape that a kernel is compiled for.

    Chosen by compiling the alternatives (`python -m tools.pages cuda_kernels`): next to no
    registers are spilled, loads are 16 bytes wide, and enough of them are in flight.

    >>> shape_of("gate_up_tiles", "float16", "float16", 128, 90).pairs
    128
    >>> shape_of("gate_up_tiles", "float16", "float16", 128, 86).pairs
    64

    Args:
        kernel: `gate_up_rows`, `down_rows`, `gate_up_tiles` or `down_tiles`.
        format_name: format of the weights.
        x_dtype: dtype of x, `float16` or `float32`.
        pairs: kind of tile: 1, SMALL_TILE_PAIRS or LARGE_TILE_PAIRS.
        architecture: compute capability, such as 90.
    """
    four_bits = codes_per_byte(format_name) == 2
    if kernel.endswith("rows"):
        # A step takes 1 or 2 KB of a row. Rows of down are short: in 4 bits one step is enough.
        columns = 512 if format_name == "float32" else 1024
        return Shape(1, 4, 2 * columns if four_bits and kernel == "down_rows" else columns, 4, 1)
    if x_dtype == "float32":
        return Shape(min(pairs, 32), 64, 32, 4, 3)
    if pairs == SMALL_TILE_PAIRS:
        # With two warps the compiler does not wait after each product.
        return Shape(pairs, 32, 64, 4, 4) if format_name == "nf4" else Shape(pairs, 64, 64, 2, 4)
    pairs = pairs if architecture in WARPGROUP_ARCHITECTURES else 64
    return Shape(pairs, 128, 32 if four_bits else 64, 8, 3)


SCALE_ARGUMENTS = (
    *("input_scale", "hidden_scale", "columns"),
    *("scale_columns", "input_slots", "hidden_slots", "column_slots"),
)
"""Arguments of `gate_up_rows` that only its variants for factors per token have."""

UP_ARGUMENTS = {"gate_up_rows": "up_input_scale", "gate_up_tiles": "x_up"}
"""Arguments that only the variants have in which `up` has factors of its own."""

UP_TILE_PAIRS = SMALL_TILE_PAIRS
"""Kind of tile of `gate_up_tiles` where `up` has factors of its own, for any number of pairs. One
kind keeps the packages small, and the large one would spill registers on sm_120."""


def constants_of(
    kernel: str, format_name: Format, shape: Shape, factors: Factors = ""
) -> dict[str, Any]:
    """Compile-time arguments of a kernel, by name.

    >>> constants_of("down_rows", "int8", Shape(1, 4, 1024, 4, 1))
    {'FORMAT': 'int8', 'ROWS': 4, 'UNITS': 32}
    """
    constants: dict[str, Any] = {"FORMAT": format_name}
    if kernel in UP_ARGUMENTS:
        up_scaled = factors == "up_scaled"
        constants["UP_SCALED"] = up_scaled
        constants |= {} if up_scaled else {UP_ARGUMENTS[kernel]: None}
    if kernel.endswith("tiles"):
        return constants | {"PAIRS": shape.pairs, "ROWS": shape.rows, "COLUMNS": shape.columns}
    if kernel == "gate_up_rows":
        constants |= {"SLOTS": MOST_SLOTS, "SCALED": factors != ""}
        constants |= {} if factors else dict.fromkeys(SCALE_ARGUMENTS)
    return constants | {"ROWS": shape.rows, "UNITS": shape.columns // RUN}


def path_of(tokens: int, slots: int) -> Path:
    """Path of a call: `rows` takes tokens one by one, `tiles` takes sorted pairs in tiles.

    >>> path_of(1, 8), path_of(1, 17), path_of(64, 8)
    ('rows', 'tiles', 'tiles')
    """
    return "rows" if tokens <= ROWS_PATH_TOKENS and slots <= MOST_SLOTS else "tiles"


def token_stride(widths: Sequence[int], top_k: int, shared: bool, format_name: Format) -> int:
    """Largest number of hidden values of a token: its experts side by side, widths padded.

    An expert may be chosen twice, so this is top_k times the widest, and the shared one.

    >>> token_stride((40, 0, 7, 130), 2, True, "float16")
    288

    Args:
        widths: widths of the experts, the shared one last.
        top_k: number of experts chosen per token.
        shared: True if there is a shared expert.
        format_name: format of the weights.
    """
    routed = widths[: len(widths) - shared]
    widest = padded_depth(max(routed, default=0), format_name)
    return top_k * widest + (padded_depth(widths[-1], format_name) if shared else 0)


def tile_pairs(tokens: int, slots: int, num_experts: int) -> int:
    """Kind of tile for the pairs of a call.

    >>> tile_pairs(16, 4, 60), tile_pairs(512, 4, 60)
    (16, 128)
    """
    few = tokens * slots <= PAIRS_PER_EXPERT * num_experts
    return SMALL_TILE_PAIRS if few else LARGE_TILE_PAIRS


def most_tiles(tokens: int, slots: int, num_experts: int, pairs: int) -> int:
    """Largest number of tiles that the pairs of a call can fill, however they are routed.

    >>> most_tiles(4096, 4, 60, 128)
    188
    """
    total = tokens * slots
    return min(total, num_experts + total // pairs)
