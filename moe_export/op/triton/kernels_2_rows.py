"""Few tokens: each token reads its experts' weights for itself, as a matrix times a vector.

Version 2 of 3, from plain to fast; plain and shared parts are in `kernels_1_common`, many tokens go
through `kernels_3_tiles`. To time it on a GPU: `python -m moe_export.gpu_check --parts layers` for
whole layers, `--parts shapes` for each kernel alone, in its shape and in neighbouring ones.

A layer takes two launches, `gate_up_rows` and `down_rows`. A token's experts lie side by side on
one axis, each with its padded width, and both products run along that axis. All programs therefore
do equal work whatever the widths are, no expert waits for the one before it, and the second launch
writes y without adding up across programs.

Time is bound by the bytes of the weights, and for one token by the latency of the memory. So the
first launch looks up the places of the second one's weights once (the unit map), and the loads of a
step do not wait for each other.

Legend: D hidden, S slots per token, w width of an expert, u units of RUN stored values, H hidden
values of a token (the sum of its experts' padded widths).
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
    depth_of,
    expert_of,
    groups_of,
    has_zero_points,
    is_quantized,
    looked_up,
    values_per_load,
    whole_number,
)

# The unit map of a token: the number of its units, -1 if an index names no expert, and then
# MAP_ROWS rows of `capacity` int32. For unit u of the token's hidden values the rows hold
MAP_BASE = tl.constexpr(0)  # its place in row 0 of its expert's part of down, in units
MAP_LENGTH = tl.constexpr(1)  # length of a row of that part, in units
MAP_GROUP = tl.constexpr(2)  # the group of its lower half in row 0 of the part's scales
MAP_GROUPS = tl.constexpr(3)  # number of groups in a row of the part's scales
MAP_UPPER = tl.constexpr(4)  # distance from there to the group of its upper half
MAP_FACTOR = tl.constexpr(5)  # routing weight, the bits of a float32
MAP_ROWS = tl.constexpr(6)


@triton.jit
def unit_sums(
    total,
    stored,
    vector,
    groups,
    codebook,
    half: tl.constexpr,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """Adds the sums of weights * vector over each part of a unit to total [ROWS, UNITS, parts].

    A part is the 16 bytes that a thread loads at once, so no value passes between threads here.

    Args:
        total: sums so far, [ROWS, UNITS, parts] float32.
        stored: values, codes, or bytes of two codes, [ROWS, UNITS, RUN].
        vector: factor of the weights, [UNITS, RUN] float32.
        groups: scales and zero points, [ROWS, UNITS] each; ignored in formats without them.
        half: nibble of each byte, 0 the lower and 1 the upper; 0 in other formats.
    """
    scale, zero = groups
    if FORMAT == "nf4":
        code = (stored >> (4 * half)) & 15
        value = looked_up(codebook, tl.reshape(code, (ROWS * UNITS * RUN_DEPTHS,)))
        value = tl.reshape(value, (ROWS, UNITS, RUN_DEPTHS))
    elif is_quantized(FORMAT):
        code = stored
        if codes_per_byte(FORMAT) == 2:
            code = (stored >> (4 * half)) & 15
        if has_zero_points(FORMAT):
            value = whole_number(code, 0, tl.float32) - zero.to(tl.float32)[:, :, None]
        else:
            value = whole_number(code, 8 if FORMAT == "int4" else 128, tl.float32)
    else:
        value = stored.to(tl.float32)
    parts: tl.constexpr = RUN_DEPTHS // values_per_load(FORMAT)
    products = tl.reshape(value * vector[None, :, :], (ROWS, UNITS, parts, values_per_load(FORMAT)))
    sums = tl.sum(products, axis=3)
    if is_quantized(FORMAT):
        sums *= scale.to(tl.float32)[:, :, None]
    return total + sums


@triton.jit
def gate_up_half(
    x, x_columns, scales, zeros, rows, run, scale_stride, group_shift, FORMAT: tl.constexpr
):
    """Loads what a half of the codes is multiplied by: x, scales and zero points.

    Args:
        x: pointer to the token's row of x, [x_columns].
        x_columns: number of values in the row.
        scales: pointers to the scales of gate and of up, [R, scale_stride] each.
        zeros: pointers to their zero points, likewise.
        rows: row indices in gate and up [ROWS], and a mask of the rows that exist [ROWS].
        run: indices of the runs, [UNITS].
        scale_stride: number of groups in a row.
        group_shift: log2 of the number of runs in a group.
        FORMAT: format of the weights.

    Returns:
        x [UNITS, RUN] float32; scale and zero point of gate, and of up, [ROWS, UNITS] each.
    """
    gate_scale, up_scale = scales
    gate_zero, up_zero = zeros
    row, row_exists = rows
    column = run[:, None] * RUN_DEPTHS + tl.arange(0, RUN_DEPTHS)[None, :]
    vector = tl.load(x + column, mask=column < x_columns, other=0.0).to(tl.float32)
    group = run >> group_shift
    offset = (row * scale_stride)[:, None] + group[None, :]
    mask = row_exists[:, None] & (group < scale_stride)[None, :]
    scale_a = 1.0
    scale_b = 1.0
    zero_a = 0.0
    zero_b = 0.0
    if is_quantized(FORMAT):
        scale_a = tl.load(gate_scale + offset, mask=mask, other=0.0)
        scale_b = tl.load(up_scale + offset, mask=mask, other=0.0)
    if has_zero_points(FORMAT):
        zero_a = tl.load(gate_zero + offset, mask=mask, other=0)
        zero_b = tl.load(up_zero + offset, mask=mask, other=0)
    return vector, (scale_a, zero_a), (scale_b, zero_b)


@triton.jit
def scaled_vector(vector, input_scale, num_scaled, run):
    """Vector [UNITS, RUN] of x, of the runs `run` [UNITS], times the token's num_scaled factors."""
    column = run[:, None] * RUN_DEPTHS + tl.arange(0, RUN_DEPTHS)[None, :]
    factor = tl.load(input_scale + column, mask=column < num_scaled, other=1.0)
    return vector * factor.to(tl.float32)


@triton.jit
def gate_up_rows(
    x,
    indices,
    weights,
    shared_weight,
    hidden,
    unit_map,
    gate,
    up,
    gate_scale,
    up_scale,
    gate_zero,
    up_zero,
    codebook,
    table,
    num_columns,
    x_columns,
    depth,
    hidden_stride,
    scale_stride,
    group_shift,
    top_k,
    slots,
    num_routed,
    num_experts,
    activation,
    input_scale,
    hidden_scale,
    columns,
    scale_columns,
    input_slots,
    hidden_slots,
    column_slots,
    up_input_scale,
    FORMAT: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    SCALED: tl.constexpr,
    UP_SCALED: tl.constexpr,
):
    """hidden[t, j] = silu(x[t] . gate[j]) * (x[t] . up[j]) for the hidden units j of the token's
    experts side by side (another activation likewise), and the token's unit map for `down_rows`.

    Grid: (tiles of ROWS values of hidden, tokens). ROWS divides RUN, so a tile has one expert.

    Args:
        x: [T, x_columns], x_columns a multiple of 16.
        indices: experts of each token, [T, K] int64.
        weights: routing weights, [T, K].
        shared_weight: weight of the shared expert, [T, 1].
        hidden: result, [T, hidden_stride]; zeros where an expert's width is padded.
        unit_map: result, [T, 1 + MAP_ROWS * capacity] int32; capacity is hidden_stride in units.
        gate: weights [R, depth]; those of up where the activation has no gate.
        up: weights [R, depth].
        depth: padded depth of a row of gate and up.
        activation: index in `spec.ACTIVATIONS`.
        input_scale: factors of x, [T, x_columns]; this and what follows is None unless SCALED.
        hidden_scale: factors of the hidden values, [T, scale_columns].
        columns: column of hidden_scale for each row of gate and up, [R] int32.
        input_slots: number of slots that read x times input_scale: top_k, or 0 without it.
        hidden_slots: number of slots whose hidden values are multiplied, likewise.
        column_slots: number of slots that have `columns`; the others take the columns 0 to w - 1.
        up_input_scale: factors of x for `up`, [T, x_columns], where those of `input_scale` are for
            `gate` alone; None unless UP_SCALED.
    """
    token = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    halves: tl.constexpr = codes_per_byte(FORMAT)
    unit_depth: tl.constexpr = halves * RUN_DEPTHS
    capacity = hidden_stride // unit_depth
    unit_map += token * (1 + MAP_ROWS * capacity)

    # The token's experts lie side by side: slot s covers [ends[s - 1], ends[s]) of its hidden row.
    slot = tl.arange(0, SLOTS)
    experts = expert_of(indices, token, slot, top_k, num_routed)
    has_expert = (slot < slots) & (experts >= 0)
    widths = tl.load(table + TABLE_WIDTH * num_experts + experts, mask=has_expert, other=0)
    ends = tl.cumsum(depth_of(widths, FORMAT), axis=0)
    num_values = tl.max(ends, axis=0)
    if tile == 0:
        missing = tl.max(((slot < slots) & (experts < 0)).to(tl.int32), axis=0)
        tl.store(unit_map, tl.where(missing > 0, -1, num_values // unit_depth))
    if tile * ROWS >= num_values:
        return
    # The tile's slot is the number of slots that end before it. A sum over one lane selects.
    tile_slot = tl.sum((ends <= tile * ROWS).to(tl.int32), axis=0)
    expert = tl.sum(tl.where(slot == tile_slot, experts, 0), axis=0)
    width = tl.sum(tl.where(slot == tile_slot, widths, 0), axis=0)
    end = tl.sum(tl.where(slot == tile_slot, ends, 0), axis=0)
    first_value = tile * ROWS - (end - depth_of(width, FORMAT))
    first_row = tl.load(table + TABLE_ROW * num_experts + expert)

    value = first_value + tl.arange(0, ROWS)
    row_exists = value < width
    row = (first_row + value).to(tl.int64)
    rows = (row, row_exists)
    scales = (gate_scale, up_scale)
    zeros = (gate_zero, up_zero)
    lane = tl.arange(0, RUN_DEPTHS)
    units = depth // unit_depth
    parts: tl.constexpr = RUN_DEPTHS // values_per_load(FORMAT)
    a = tl.zeros((ROWS, UNITS, parts), tl.float32)
    b = tl.zeros((ROWS, UNITS, parts), tl.float32)
    for first in range(0, units, UNITS):
        unit = first + tl.arange(0, UNITS)
        # Stored value [row, unit, lane] of a matrix of `units` units to a row.
        offset = (row * units)[:, None] + unit[None, :]
        offset = (offset * RUN_DEPTHS)[:, :, None] + lane[None, None, :]
        mask = row_exists[:, None, None] & (unit < units)[None, :, None]
        gate_codes = tl.load(gate + offset, mask=mask, other=0)
        up_codes = tl.load(up + offset, mask=mask, other=0)
        # All loads for both halves of a byte are issued before the first half is used.
        x_row = x + token * x_columns
        run = unit * halves
        vector, groups_a, groups_b = gate_up_half(
            x_row, x_columns, scales, zeros, rows, run, scale_stride, group_shift, FORMAT
        )
        up_vector = vector
        if SCALED:
            scale_row = input_scale + token * x_columns
            num_scaled = tl.where(tile_slot < input_slots, x_columns, 0)
            vector = scaled_vector(vector, scale_row, num_scaled, run)
            if UP_SCALED:
                up_row = up_input_scale + token * x_columns
                up_vector = scaled_vector(up_vector, up_row, num_scaled, run)
            else:
                up_vector = vector
        upper = vector
        up_upper = up_vector
        upper_a = groups_a
        upper_b = groups_b
        if halves == 2:
            upper, upper_a, upper_b = gate_up_half(
                x_row, x_columns, scales, zeros, rows, run + 1, scale_stride, group_shift, FORMAT
            )
            up_upper = upper
            if SCALED:
                upper = scaled_vector(upper, scale_row, num_scaled, run + 1)
                if UP_SCALED:
                    up_upper = scaled_vector(up_upper, up_row, num_scaled, run + 1)
                else:
                    up_upper = upper
        a = unit_sums(a, gate_codes, vector, groups_a, codebook, 0, FORMAT, ROWS, UNITS)
        b = unit_sums(b, up_codes, up_vector, groups_b, codebook, 0, FORMAT, ROWS, UNITS)
        if halves == 2:
            a = unit_sums(a, gate_codes, upper, upper_a, codebook, 1, FORMAT, ROWS, UNITS)
            b = unit_sums(b, up_codes, up_upper, upper_b, codebook, 1, FORMAT, ROWS, UNITS)
    # The padding of a width is zero even where x is NaN.
    a_rows = tl.sum(tl.reshape(a, (ROWS, UNITS * parts)), axis=1)
    b_rows = tl.sum(tl.reshape(b, (ROWS, UNITS * parts)), axis=1)
    result = tl.where(row_exists, activated(a_rows, b_rows, activation), 0.0)
    if SCALED:
        num_multiplied = tl.where(tile_slot < hidden_slots, width, 0)
        num_mapped = tl.where(tile_slot < column_slots, num_multiplied, 0)
        column = tl.load(columns + row, mask=value < num_mapped, other=0)
        column = tl.where(tile_slot < column_slots, column, value)
        places = hidden_scale + token * scale_columns + column
        result *= tl.load(places, mask=value < num_multiplied, other=1.0).to(tl.float32)
    result = result.to(hidden.dtype.element_ty)
    tl.store(hidden + token * hidden_stride + tile * ROWS + tl.arange(0, ROWS), result)

    # The program of a unit's first tile writes the unit's column of the map. down is [D, w] for
    # each expert, so its parts begin at num_columns (D) times the sum of the depths before.
    if first_value % unit_depth == 0:
        unit = first_value // unit_depth
        depth_units = depth_of(width, FORMAT) // unit_depth
        groups = groups_of(width, group_shift)
        first_unit = tl.load(table + TABLE_DEPTH * num_experts + expert) // unit_depth
        first_group = tl.load(table + TABLE_GROUP * num_experts + expert)
        routed = tl.load(weights + token * top_k + tile_slot, mask=tile_slot < top_k, other=0.0)
        shared = tl.load(shared_weight + token, mask=tile_slot >= top_k, other=0.0)
        factor = tl.where(tile_slot < top_k, routed, shared).to(tl.float32)
        entry = unit_map + 1 + tile * ROWS // unit_depth
        tl.store(entry + MAP_BASE * capacity, first_unit * num_columns + unit)
        tl.store(entry + MAP_LENGTH * capacity, depth_units)
        group = unit * halves >> group_shift
        tl.store(entry + MAP_GROUP * capacity, first_group * num_columns + group)
        tl.store(entry + MAP_GROUPS * capacity, groups)
        # An upper half of padding has no group: it takes the last one.
        upper = tl.minimum((unit * halves + halves - 1) >> group_shift, groups - 1)
        tl.store(entry + MAP_UPPER * capacity, upper - group)
        tl.store(entry + MAP_FACTOR * capacity, factor.to(tl.int32, bitcast=True))


@triton.jit
def down_rows(
    hidden,
    unit_map,
    y,
    down,
    down_scale,
    down_zero,
    codebook,
    num_columns,
    hidden_stride,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """y[t, d] = sum over the token's hidden values j of factor[j] * hidden[t, j] * down[d, j].

    Grid: (tiles of ROWS columns of y, tokens). The token's row is NaN where its map says that an
    index names no expert: a kernel cannot raise an error.
    """
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_exists = column < num_columns
    halves: tl.constexpr = codes_per_byte(FORMAT)
    unit_depth: tl.constexpr = halves * RUN_DEPTHS
    capacity = hidden_stride // unit_depth
    unit_map += token * (1 + MAP_ROWS * capacity)
    units = tl.load(unit_map)
    lane = tl.arange(0, RUN_DEPTHS)
    parts: tl.constexpr = RUN_DEPTHS // values_per_load(FORMAT)
    total = tl.zeros((ROWS, UNITS, parts), tl.float32)
    for first in range(0, units, UNITS):
        unit = first + tl.arange(0, UNITS)
        unit_exists = unit < units
        entry = unit_map + 1 + unit
        base = tl.load(entry + MAP_BASE * capacity, mask=unit_exists, other=0)
        length = tl.load(entry + MAP_LENGTH * capacity, mask=unit_exists, other=0)
        # Column d of y is row d of each expert's part of down: d * length units after its row 0.
        offset = base.to(tl.int64)[None, :] + column[:, None] * length[None, :]
        offset = (offset * RUN_DEPTHS)[:, :, None] + lane[None, None, :]
        mask = column_exists[:, None, None] & unit_exists[None, :, None]
        stored = tl.load(down + offset, mask=mask, other=0)
        factor = tl.load(entry + MAP_FACTOR * capacity, mask=unit_exists, other=0)
        factor = factor.to(tl.float32, bitcast=True)
        group = tl.load(entry + MAP_GROUP * capacity, mask=unit_exists, other=0)
        stride = tl.load(entry + MAP_GROUPS * capacity, mask=unit_exists, other=0)
        to_upper = tl.load(entry + MAP_UPPER * capacity, mask=unit_exists, other=0)
        lower_group = group.to(tl.int64)[None, :] + column[:, None] * stride[None, :]
        group_mask = column_exists[:, None] & unit_exists[None, :]
        for half in tl.static_range(halves):
            value = (unit * halves + half)[:, None] * RUN_DEPTHS + lane[None, :]
            vector = tl.load(
                hidden + token * hidden_stride + value, mask=unit_exists[:, None], other=0.0
            )
            vector = vector.to(tl.float32) * factor[:, None]
            scale = 1.0
            zero = 0.0
            half_group = lower_group + half * to_upper[None, :]
            if is_quantized(FORMAT):
                scale = tl.load(down_scale + half_group, mask=group_mask, other=0.0)
            if has_zero_points(FORMAT):
                zero = tl.load(down_zero + half_group, mask=group_mask, other=0)
            groups = (scale, zero)
            total = unit_sums(total, stored, vector, groups, codebook, half, FORMAT, ROWS, UNITS)
    result = tl.sum(tl.reshape(total, (ROWS, UNITS * parts)), axis=1)
    result = tl.where(units < 0, float("nan"), result).to(y.dtype.element_ty)
    tl.store(y + token * num_columns + column, result, mask=column_exists)
