"""Many tokens: pairs sorted by expert, and products of tiles by the tensor cores.

`group_pairs`, `gate_up_tiles`, `down_tiles` and `add_pairs` make a layer. The number of tiles is
not known to the host, which must not wait for the device: the grid is the most that there can be,
and programs beyond the last tile end at once. Each number of y is added up in a fixed order, so
the same inputs give the same bits.

Products run in float16 where x is float16 (weights are rounded to it, codes are exact in it), and
in three passes of tf32 where x is float32, which is nearly float32; sums are always float32.

Legend: T tokens, D hidden, S slots per token, w width of an expert, E experts, p pair.
"""

import triton
import triton.language as tl

from moe_export.op.triton.kernels_1_common import (
    RUN_DEPTHS,
    TABLE_DEPTH,
    TABLE_GROUP,
    TABLE_ROW,
    TABLE_WIDTH,
    activated,
    codes_per_byte,
    decoded,
    depth_of,
    lower_depth,
)


@triton.jit
def tile_of(counts, tile, num_experts, PAIRS: tl.constexpr):
    """The expert of a tile and which of the expert's tiles it is; E if there is no such tile."""
    expert = 0
    first = 0
    before = 0
    for block in range(0, num_experts, 128):
        e = block + tl.arange(0, 128)
        count = tl.load(counts + e, mask=e < num_experts, other=0)
        tiles = (count + PAIRS - 1) // PAIRS
        end = before + tl.cumsum(tiles, axis=0)
        passed = (end <= tile) & (e < num_experts)
        expert += tl.sum(passed.to(tl.int32), axis=0)
        first += tl.sum(tl.where(passed, tiles, 0), axis=0)
        before += tl.sum(tiles, axis=0)
    return expert, tile - first


@triton.jit
def weight_tile(
    weights,
    scales,
    zeros,
    codebook,
    rows,
    live,
    place,
    run,
    half: tl.constexpr,
    depth,
    scale_stride,
    group_shift,
    dtype: tl.constexpr,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """[ROWS, COLUMNS] values in dtype; place numbers bytes, in the formats of floats values."""
    halves: tl.constexpr = codes_per_byte(FORMAT)
    at = rows.to(tl.int64)[:, None] * (depth // halves) + place[None, :]
    inside = live[:, None] & (place < depth // halves)[None, :]
    if FORMAT == "float32" or FORMAT == "float16" or FORMAT == "bfloat16":
        tile = tl.load(weights + at, mask=inside, other=0.0).to(dtype)
    else:
        codes = tl.load(weights + at, mask=inside, other=0)
        if halves == 2:
            codes = (codes >> (4 * half)) & 15
        tile = decoded(
            codes,
            scales,
            zeros,
            codebook,
            run,
            scale_stride,
            rows,
            live,
            group_shift,
            FORMAT,
            ROWS,
            COLUMNS // RUN_DEPTHS,
            dtype,
        )
    return tile


@triton.jit
def product(a, w, total):
    """Total + a @ w.T, at the precision of a's dtype."""
    return tl.dot(a, tl.trans(w), total, input_precision="tf32x3")


@triton.jit
def gate_up_tiles(
    x,
    pairs,
    starts,
    counts,
    hidden,
    gate,
    up,
    gate_scale,
    up_scale,
    gate_zero,
    up_zero,
    codebook,
    table,
    x_columns,
    depth,
    hidden_stride,
    scale_stride,
    group_shift,
    slots,
    num_experts,
    activation,
    FORMAT: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """hidden[i, j] = silu(x[t] . gate[j]) * (x[t] . up[j]) for the pair in place i of `pairs`, or
    what another activation makes of the two; gate is up where it has none.

    Grid: (tiles of ROWS units of the widest expert, tiles of PAIRS pairs). Programs that follow
    each other share the rows of x, and those of the next tile the weights, which are then in L2.
    """
    expert, tile = tile_of(counts, tl.program_id(1), num_experts, PAIRS)
    if expert >= num_experts:
        return
    width = tl.load(table + TABLE_WIDTH * num_experts + expert)
    stored = depth_of(width, FORMAT)
    if tl.program_id(0) * ROWS >= stored:
        return
    first_row = tl.load(table + TABLE_ROW * num_experts + expert)
    start = tl.load(starts + expert)
    in_expert = tile * PAIRS + tl.arange(0, PAIRS)
    chosen = in_expert < tl.load(counts + expert)
    pair = tl.load(pairs + start + in_expert, mask=chosen, other=0)
    token = (pair // slots).to(tl.int64)
    unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = unit < width
    dtype: tl.constexpr = x.dtype.element_ty
    a = tl.zeros((PAIRS, ROWS), tl.float32)
    b = tl.zeros((PAIRS, ROWS), tl.float32)
    halves: tl.constexpr = codes_per_byte(FORMAT)
    for first in range(0, depth // halves, COLUMNS):
        place = first + tl.arange(0, COLUMNS)
        run = (tl.arange(0, COLUMNS // RUN_DEPTHS) + first // RUN_DEPTHS) * halves
        for half in tl.static_range(halves):
            if halves == 2:
                column = lower_depth(place) + half * RUN_DEPTHS
            else:
                column = place
            rows_x = tl.load(
                x + token[:, None] * x_columns + column[None, :],
                mask=chosen[:, None] & (column < x_columns)[None, :],
                other=0.0,
            )
            w = weight_tile(
                gate,
                gate_scale,
                gate_zero,
                codebook,
                first_row + unit,
                live,
                place,
                run + half,
                half,
                depth,
                scale_stride,
                group_shift,
                dtype,
                FORMAT,
                ROWS,
                COLUMNS,
            )
            a = product(rows_x, w, a)
            w = weight_tile(
                up,
                up_scale,
                up_zero,
                codebook,
                first_row + unit,
                live,
                place,
                run + half,
                half,
                depth,
                scale_stride,
                group_shift,
                dtype,
                FORMAT,
                ROWS,
                COLUMNS,
            )
            b = product(rows_x, w, b)
    # Also NaN times the zeros that fill up the width has to be zero.
    value = tl.where(live[None, :], activated(a, b, activation), 0.0).to(dtype)
    at = (start + in_expert).to(tl.int64)[:, None] * hidden_stride + unit[None, :]
    tl.store(hidden + at, value, mask=chosen[:, None] & (unit < stored)[None, :])


@triton.jit
def down_tiles(
    hidden,
    pairs,
    starts,
    counts,
    out,
    down,
    down_scale,
    down_zero,
    codebook,
    table,
    num_columns,
    hidden_stride,
    out_stride,
    group_shift,
    num_experts,
    FORMAT: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out[p, d] = hidden[i] . down[d] for the pair p in place i of `pairs`.

    Grid: (tiles of ROWS columns of y, tiles of PAIRS pairs).
    """
    expert, tile = tile_of(counts, tl.program_id(1), num_experts, PAIRS)
    if expert >= num_experts:
        return
    width = tl.load(table + TABLE_WIDTH * num_experts + expert)
    if width == 0:
        return
    depth = depth_of(width, FORMAT)
    first_depth = tl.load(table + TABLE_DEPTH * num_experts + expert).to(tl.int64)
    first_group = tl.load(table + TABLE_GROUP * num_experts + expert).to(tl.int64)
    groups = (width + (RUN_DEPTHS << group_shift) - 1) // (RUN_DEPTHS << group_shift)
    start = tl.load(starts + expert)
    in_expert = tile * PAIRS + tl.arange(0, PAIRS)
    chosen = in_expert < tl.load(counts + expert)
    pair = tl.load(pairs + start + in_expert, mask=chosen, other=0).to(tl.int64)
    row_i = (start + in_expert).to(tl.int64)
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = column < num_columns
    dtype: tl.constexpr = hidden.dtype.element_ty
    halves: tl.constexpr = codes_per_byte(FORMAT)
    weights = down + tl.multiple_of(first_depth // halves, 32) * num_columns
    scales = down_scale + first_group * num_columns
    zeros = down_zero + first_group * num_columns
    total = tl.zeros((PAIRS, ROWS), tl.float32)
    for first in range(0, depth // halves, COLUMNS):
        place = first + tl.arange(0, COLUMNS)
        run = (tl.arange(0, COLUMNS // RUN_DEPTHS) + first // RUN_DEPTHS) * halves
        for half in tl.static_range(halves):
            if halves == 2:
                unit = lower_depth(place) + half * RUN_DEPTHS
            else:
                unit = place
            values = tl.load(
                hidden + row_i[:, None] * hidden_stride + unit[None, :],
                mask=chosen[:, None] & (unit < depth)[None, :],
                other=0.0,
            )
            w = weight_tile(
                weights,
                scales,
                zeros,
                codebook,
                column,
                live,
                place,
                run + half,
                half,
                depth,
                groups,
                group_shift,
                dtype,
                FORMAT,
                ROWS,
                COLUMNS,
            )
            total = product(values, w, total)
    at = pair[:, None] * out_stride + column[None, :]
    tl.store(out + at, total.to(dtype), mask=chosen[:, None] & live[None, :])
