"""Which kernels run a layer, over which grid: facts shared by `driver`, `build` and the library.

Legend: T tokens, S slots per token (K, and one more with a shared expert), E experts with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moe_export.op.spec import Format
from moe_export.op.triton.packed import RUN, codes_per_byte, padded_depth

Path = Literal["rows", "tiles"]

ROWS_PATH_TOKENS = 8
"""Up to this many tokens each reads its weights by itself: they seldom share an expert."""

PAIRS_PER_EXPERT = 16
"""Up to this many pairs to an expert, on average, tiles are of the small kind."""

MOST_SLOTS = 16
"""A token with more of them goes by tiles."""

GROUP_BLOCK = 1024
COPY_BLOCK = 1024


@dataclass(frozen=True)
class Shape:
    """Of the piece of work of a program.

    Attributes:
        pairs: of a tile; 1 in the rows path.
        rows: of the weights, which are columns of the result.
        columns: stored values of a row taken at a time; bytes of codes.
        warps: of 32 threads.
        stages: of the software pipeline, at most; fewer where shared memory does not suffice.
    """

    pairs: int
    rows: int
    columns: int
    warps: int
    stages: int


SMALL_TILE_PAIRS = 16
LARGE_TILE_PAIRS = 128

WARPGROUP_ARCHITECTURES = (90, 100)
"""Whose products keep their sums out of the way of other registers, or need fewer of them."""


def shape_of(
    kernel: str, format_name: Format, x_dtype: str, pairs: int, architecture: int
) -> Shape:
    """The shape that a kernel is compiled for.

    Chosen by what the compiler made of the alternatives (`python -m tools.pages.cuda_kernels`):
    next to no registers are spilled, loads are 16 bytes wide, and enough of them are under way.

    >>> shape_of("gate_up_tiles", "float16", "float16", 128, 90).pairs
    128
    >>> shape_of("gate_up_tiles", "float16", "float16", 128, 86).pairs
    64

    Args:
        kernel: `gate_up_rows`, `down_rows`, `gate_up_tiles` or `down_tiles`.
        format_name: of the weights.
        x_dtype: `float16` or `float32`.
        pairs: 1, SMALL_TILE_PAIRS or LARGE_TILE_PAIRS.
        architecture: compute capability, as 90.
    """
    four_bits = codes_per_byte(format_name) == 2
    if kernel.endswith("rows"):
        # A step of a row is 1 or 2 KB. Down's rows are short: in four bits one step takes them all.
        columns = 512 if format_name == "float32" else 1024
        return Shape(1, 4, 2 * columns if four_bits and kernel == "down_rows" else columns, 4, 1)
    if x_dtype == "float32":
        return Shape(min(pairs, 32), 64, 32, 4, 3)
    if pairs == SMALL_TILE_PAIRS:
        # Two warps stay below what makes the compiler wait for each product.
        return Shape(pairs, 32, 64, 4, 4) if format_name == "nf4" else Shape(pairs, 64, 64, 2, 4)
    pairs = pairs if architecture in WARPGROUP_ARCHITECTURES else 64
    return Shape(pairs, 128, 32 if four_bits else 64, 8, 3)


def constants_of(kernel: str, format_name: Format, shape: Shape) -> dict[str, Any]:
    """What a kernel is compiled with, by the names of its arguments.

    >>> constants_of("down_rows", "int8", Shape(1, 4, 1024, 4, 1))
    {'FORMAT': 'int8', 'ROWS': 4, 'UNITS': 32}
    """
    constants: dict[str, Any] = {"FORMAT": format_name}
    if kernel.endswith("tiles"):
        return constants | {"PAIRS": shape.pairs, "ROWS": shape.rows, "COLUMNS": shape.columns}
    if kernel == "gate_up_rows":
        constants["SLOTS"] = MOST_SLOTS
    return constants | {"ROWS": shape.rows, "UNITS": shape.columns // RUN}


def path_of(tokens: int, slots: int) -> Path:
    """Whether tokens are taken one by one, or pairs in tiles.

    >>> path_of(1, 8), path_of(1, 17), path_of(64, 8)
    ('rows', 'tiles', 'tiles')
    """
    return "rows" if tokens <= ROWS_PATH_TOKENS and slots <= MOST_SLOTS else "tiles"


def token_stride(widths: Sequence[int], top_k: int, shared: bool, format_name: Format) -> int:
    """The most hidden values of a token, its experts side by side, each with its padded width.

    An expert may be chosen twice, so that it is top_k times the widest.

    >>> token_stride((40, 0, 7, 130), 2, True, "float16")
    288

    Args:
        widths: of the experts, the shared one last.
        top_k: experts chosen per token.
        shared: whether there is a shared expert.
        format_name: of the weights.
    """
    routed = widths[: len(widths) - shared]
    widest = padded_depth(max(routed, default=0), format_name)
    return top_k * widest + (padded_depth(widths[-1], format_name) if shared else 0)


def tile_pairs(tokens: int, slots: int, num_experts: int) -> int:
    """The kind of tile for so many pairs.

    >>> tile_pairs(16, 4, 60), tile_pairs(512, 4, 60)
    (16, 128)
    """
    few = tokens * slots <= PAIRS_PER_EXPERT * num_experts
    return SMALL_TILE_PAIRS if few else LARGE_TILE_PAIRS


def most_tiles(tokens: int, slots: int, num_experts: int, pairs: int) -> int:
    """The most tiles that the pairs of a call can fall into, however they are routed.

    >>> most_tiles(4096, 4, 60, 128)
    188
    """
    total = tokens * slots
    return min(total, num_experts + total // pairs)
