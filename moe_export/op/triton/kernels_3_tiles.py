"""Many tokens: pairs sorted by expert, and products of tiles by the tensor cores.

Version 3 of 3, from plain to fast; shared parts are in `kernels_1_common`, few tokens go through
`kernels_2_rows`. To time it on a GPU: `python -m moe_export.gpu_check --parts layers` for whole
layers, `--parts shapes` for each kernel alone, in its shape and in neighbouring ones.

A layer takes four launches: `group_pairs`, `gate_up_tiles`, `down_tiles` and `add_pairs`. The host
must not wait for the device and does not know the number of tiles, so the grid is the largest
possible number, and programs beyond the last tile end at once. Each value of y is summed in a fixed
order, so the same inputs give the same bits.

Products run in float16 where x is float16 (weights are rounded to it, codes are exact in it), and
in three passes of tf32, nearly float32, where x is float32. Sums are always float32.

The weights are the left factor of each product: the left factor is read from registers, where codes
are decoded, and the right one from shared memory.

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
    group_tile,
    groups_of,
    has_zero_points,
    is_quantized,
    lower_depth,
    stored_depth,
)


@triton.jit
def tile_of(counts, tile, num_experts, PAIRS: tl.constexpr):
    """Expert of a tile, and the tile's number within that expert; E beyond the last tile."""
    expert = 0
    first = 0
    before = 0
    for block in range(0, num_experts, 128):
        # Experts whose tiles all end before this one are passed: their number is the expert, and
        # the sum of their tiles is the expert's first.
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
    groups,
    codebook,
    rows,
    place,
    half: tl.constexpr,
    stored,
    dtype: tl.constexpr,
    FORMAT: tl.constexpr,
):
    """Weights of a tile, [ROWS, COLUMNS] in dtype.

    Args:
        weights: pointer to row 0 of the matrix.
        groups: scales and zero points from `group_tiles`, for each half of a byte.
        codebook: pointer to the values of nf4, [16] float32.
        rows: row indices [ROWS], and a mask of the rows that exist [ROWS].
        place: places in a row of stored values, or of bytes of codes, [COLUMNS].
        half: nibble of each byte, 0 the lower and 1 the upper; 0 in other formats.
        stored: length of a stored row.
        dtype: float16 or float32.
    """
    scales, zeros = groups
    row, row_exists = rows
    halves: tl.constexpr = codes_per_byte(FORMAT)
    offset = row.to(tl.int64)[:, None] * stored + place[None, :]
    mask = row_exists[:, None] & (place < stored)[None, :]
    tile = tl.load(weights + offset, mask=mask, other=0)
    if is_quantized(FORMAT):
        if halves == 2:
            tile = (tile >> (4 * half)) & 15
        count: tl.constexpr = row.shape[0]
        runs: tl.constexpr = place.shape[0] // RUN_DEPTHS
        tile = decoded(tile, scales[half], zeros[half], codebook, FORMAT, count, runs, dtype)
    else:
        tile = tile.to(dtype)
    return tile


@triton.jit
def group_tiles(
    scales, zeros, first, stride, rows, group_shift, FORMAT: tl.constexpr, COLUMNS: tl.constexpr
):
    """Scales, and zero points, of the lower and the upper half of the bytes from `first` on.

    They are loaded a step ahead. They are too short for the pipeline of the codes, so the products
    would otherwise wait for them in every step.
    """
    halves: tl.constexpr = codes_per_byte(FORMAT)
    run = (tl.arange(0, COLUMNS // RUN_DEPTHS) + first // RUN_DEPTHS) * halves
    scale = group_tile(scales, run, stride, rows, group_shift)
    next_scale = scale
    zero = scale
    next_zero = scale
    if halves == 2:
        next_scale = group_tile(scales, run + 1, stride, rows, group_shift)
    if has_zero_points(FORMAT):
        zero = group_tile(zeros, run, stride, rows, group_shift)
        next_zero = zero
        if halves == 2:
            next_zero = group_tile(zeros, run + 1, stride, rows, group_shift)
    return (scale, next_scale), (zero, next_zero)


@triton.jit
def product(w, vectors, total):
    """Total + w @ vectors.T, at the precision of their dtype."""
    return tl.dot(w, tl.trans(vectors), total, input_precision="tf32x3")


@triton.jit
def rows_tile(x, token, column, x_columns, chosen):
    """Values of x [PAIRS, COLUMNS] in the rows `token` at `column`; 0 unless chosen."""
    return tl.load(
        x + token[:, None] * x_columns + column[None, :],
        mask=chosen[:, None] & (column < x_columns)[None, :],
        other=0.0,
    )


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
    x_up,
    FORMAT: tl.constexpr,
    PAIRS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UP_SCALED: tl.constexpr,
):
    """hidden[i, j] = silu(x[t] . gate[j]) * (x[t] . up[j]) for the pair in place i of `pairs`
    (another activation likewise); gate is up where the activation has none.

    Grid: (tiles of ROWS units of the widest expert, tiles of PAIRS pairs). Consecutive programs
    share rows of x; those of the next tile find the weights in L2.

    Args:
        x: rows of x, [rows, x_columns]; read by `gate` alone if UP_SCALED.
        x_up: rows that `up` reads in place of those of x; None unless UP_SCALED.
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
    # Pairs of the tile: numbered within the expert, and looked up behind the expert's start.
    in_expert = tile * PAIRS + tl.arange(0, PAIRS)
    chosen = in_expert < tl.load(counts + expert)
    pair = tl.load(pairs + start + in_expert, mask=chosen, other=0)
    token = (pair // slots).to(tl.int64)
    unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    unit_exists = unit < width
    dtype: tl.constexpr = x.dtype.element_ty
    a = tl.zeros((ROWS, PAIRS), tl.float32)
    b = tl.zeros((ROWS, PAIRS), tl.float32)
    halves: tl.constexpr = codes_per_byte(FORMAT)
    row_stored = tl.multiple_of(depth // halves, 32)
    rows = (first_row + unit, unit_exists)
    if is_quantized(FORMAT):
        next_a = group_tiles(
            gate_scale, gate_zero, 0, scale_stride, rows, group_shift, FORMAT, COLUMNS
        )
        next_b = group_tiles(up_scale, up_zero, 0, scale_stride, rows, group_shift, FORMAT, COLUMNS)
    else:
        next_a = (0, 0), (0, 0)
        next_b = next_a
    for first in range(0, row_stored, COLUMNS):
        groups_a = next_a
        groups_b = next_b
        if is_quantized(FORMAT):
            after = first + COLUMNS
            next_a = group_tiles(
                gate_scale, gate_zero, after, scale_stride, rows, group_shift, FORMAT, COLUMNS
            )
            next_b = group_tiles(
                up_scale, up_zero, after, scale_stride, rows, group_shift, FORMAT, COLUMNS
            )
        place = first + tl.arange(0, COLUMNS)
        for half in tl.static_range(halves):
            if halves == 2:
                column = lower_depth(place) + half * RUN_DEPTHS
            else:
                column = place
            rows_x = rows_tile(x, token, column, x_columns, chosen)
            w = weight_tile(gate, groups_a, codebook, rows, place, half, row_stored, dtype, FORMAT)
            a = product(w, rows_x, a)
            w = weight_tile(up, groups_b, codebook, rows, place, half, row_stored, dtype, FORMAT)
            if UP_SCALED:
                rows_x = rows_tile(x_up, token, column, x_columns, chosen)
            b = product(w, rows_x, b)
    # The padding of a width is zero even where x is NaN.
    value = tl.trans(tl.where(unit_exists[:, None], activated(a, b, activation), 0.0).to(dtype))
    # Row i of hidden belongs to the pair in place i of the sorted pairs.
    offset = (start + in_expert).to(tl.int64)[:, None] * hidden_stride + unit[None, :]
    tl.store(hidden + offset, value, mask=chosen[:, None] & (unit < stored)[None, :])


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
    row_stored = stored_depth(width, FORMAT)
    # The hint stands on the loaded value: the compiler drops a division by 1, and the hint with it.
    halves: tl.constexpr = codes_per_byte(FORMAT)
    first_depth = tl.multiple_of(tl.load(table + TABLE_DEPTH * num_experts + expert), 32 * halves)
    first_group = tl.load(table + TABLE_GROUP * num_experts + expert).to(tl.int64)
    groups = groups_of(width, group_shift)
    start = tl.load(starts + expert)
    # Pairs of the tile: numbered within the expert, and looked up behind the expert's start.
    in_expert = tile * PAIRS + tl.arange(0, PAIRS)
    chosen = in_expert < tl.load(counts + expert)
    pair = tl.load(pairs + start + in_expert, mask=chosen, other=0).to(tl.int64)
    row_i = (start + in_expert).to(tl.int64)
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_exists = column < num_columns
    rows = (column, column_exists)
    dtype: tl.constexpr = hidden.dtype.element_ty
    # down is [D, w] for each expert: its part begins at D times the sum of the depths before.
    weights = down + (first_depth // halves).to(tl.int64) * num_columns
    scales = down_scale + first_group * num_columns
    zeros = down_zero + first_group * num_columns
    total = tl.zeros((ROWS, PAIRS), tl.float32)
    if is_quantized(FORMAT):
        next_groups = group_tiles(scales, zeros, 0, groups, rows, group_shift, FORMAT, COLUMNS)
    else:
        next_groups = (0, 0), (0, 0)
    for first in range(0, row_stored, COLUMNS):
        step_groups = next_groups
        if is_quantized(FORMAT):
            next_groups = group_tiles(
                scales, zeros, first + COLUMNS, groups, rows, group_shift, FORMAT, COLUMNS
            )
        place = first + tl.arange(0, COLUMNS)
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
                weights, step_groups, codebook, rows, place, half, row_stored, dtype, FORMAT
            )
            total = product(w, values, total)
    offset = pair[:, None] * out_stride + column[None, :]
    mask = chosen[:, None] & column_exists[None, :]
    tl.store(out + offset, tl.trans(total.to(dtype)), mask=mask)
