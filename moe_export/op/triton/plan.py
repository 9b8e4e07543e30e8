"""Which kernels run a layer, over which grid: facts shared by `driver`, `build` and the library.

Legend: T tokens, S slots per token (K, and one more with a shared expert), E experts with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_export.op.spec import Format
from moe_export.op.triton.packed import codes_per_byte

Path = Literal["rows", "tiles"]

ROWS_PATH_TOKENS = 8
"""Up to this many tokens the pairs read their weights one by one: they seldom share an expert."""

PAIRS_PER_EXPERT = 16
"""Up to this many pairs to an expert, on average, tiles are of the small kind."""

GROUP_BLOCK = 1024
COPY_BLOCK = 1024


@dataclass(frozen=True)
class Shape:
    """Of the piece of work of a program.

    Attributes:
        pairs: of a tile; 1 in the rows path.
        rows: of the weights, which are columns of the result.
        columns: stored values of a row taken at a time; bytes in four bits.
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


def shape_of(kernel: str, format_name: Format, x_dtype: str, pairs: int) -> Shape:
    """The shape that a kernel is compiled for.

    >>> shape_of("gate_up_tiles", "float16", "float16", 128).rows
    128

    Args:
        kernel: `gate_up_rows`, `down_rows`, `gate_up_tiles` or `down_tiles`.
        format_name: of the weights.
        x_dtype: `float16` or `float32`.
        pairs: 1, SMALL_TILE_PAIRS or LARGE_TILE_PAIRS.
    """
    if kernel.endswith("rows"):
        # 8 rows of 512 bytes or more: enough loads under way for the memory to be busy.
        few = format_name == "float32" or codes_per_byte(format_name) == 2
        columns = 256 if few else 512
        return Shape(1, 8, columns, 4, 1)
    columns = 64 // codes_per_byte(format_name)
    if x_dtype == "float32":
        rows = 64 if pairs == SMALL_TILE_PAIRS else 128
        return Shape(min(pairs, 64), rows, 32, 4, 3)
    if pairs == SMALL_TILE_PAIRS:
        return Shape(pairs, 64, 2 * columns, 4, 4)
    return Shape(pairs, 128, columns, 8, 3)


def path_of(tokens: int) -> Path:
    """Whether pairs are taken one by one or in tiles."""
    return "rows" if tokens <= ROWS_PATH_TOKENS else "tiles"


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
