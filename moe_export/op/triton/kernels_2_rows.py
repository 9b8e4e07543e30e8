"""Few tokens: each token reads its experts' weights by itself, as a matrix times a vector.

Two launches make a layer. A token's experts are laid side by side, each with its padded width, and
both products go along that one axis: what a program does is the same whatever widths a token meets,
no expert waits for the one before it, and y comes out of the second launch with nothing to add up
across programs.

Bound by the bytes of the weights, and for one token by how long the memory takes to answer: the
first launch finds out once where the second one's weights are, and the loads of a step do not wait
for each other.

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

# Rows of the map of a token's units, [MAP_ROWS, capacity] int32: in units, where a unit is in the
# first row of its expert's part of down and how long those rows are; the same for groups, of the
# lower half, and how many groups later the upper half is; the factor, a float's bits. One number
# more, before them, says how many units there are, -1 if an index names no expert.
MAP_BASE = tl.constexpr(0)
MAP_LENGTH = tl.constexpr(1)
MAP_GROUP = tl.constexpr(2)
MAP_GROUPS = tl.constexpr(3)
MAP_UPPER = tl.constexpr(4)
MAP_FACTOR = tl.constexpr(5)
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
    """Total [ROWS, UNITS, parts] plus the sums over each unit's parts of weights * vector.

    A part is what a thread loads at once, so that nothing passes between threads here.

    Args:
        stored: values, codes, or bytes of two codes, [ROWS, UNITS, RUN].
        vector: float32, [UNITS, RUN].
        groups: scales and zero points, [ROWS, UNITS] each; not read in formats without any.
        half: of a byte.
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
    x,
    gate_scale,
    up_scale,
    gate_zero,
    up_zero,
    row,
    live,
    run,
    x_columns,
    scale_stride,
    group_shift,
    FORMAT: tl.constexpr,
):
    """What a half needs beside the codes: x, [UNITS, RUN], and for gate and for up the scales and
    zero points of their rows, [ROWS, UNITS] each.
    """
    column = run[:, None] * RUN_DEPTHS + tl.arange(0, RUN_DEPTHS)[None, :]
    vector = tl.load(x + column, mask=column < x_columns, other=0.0).to(tl.float32)
    group = run >> group_shift
    at = (row * scale_stride)[:, None] + group[None, :]
    known = live[:, None] & (group < scale_stride)[None, :]
    scale_a = 1.0
    scale_b = 1.0
    zero_a = 0.0
    zero_b = 0.0
    if is_quantized(FORMAT):
        scale_a = tl.load(gate_scale + at, mask=known, other=0.0)
        scale_b = tl.load(up_scale + at, mask=known, other=0.0)
    if has_zero_points(FORMAT):
        zero_a = tl.load(gate_zero + at, mask=known, other=0)
        zero_b = tl.load(up_zero + at, mask=known, other=0)
    return vector, (scale_a, zero_a), (scale_b, zero_b)


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
    FORMAT: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
):
    """hidden[t, j] = silu(x[t] . gate[j]) * (x[t] . up[j]) for the units j of the token's experts,
    side by side, or what another activation makes of the two; and the map of the token's units.

    Grid: (tiles of ROWS values of hidden, tokens). ROWS divides RUN, so that a tile is of one
    expert.

    Args:
        x: [T, x_columns], x_columns a multiple of 16.
        hidden: [T, hidden_stride]; written as far as the experts go, zeros where they are padded.
        weights: routing weights, [T, K]; shared_weight of the shared expert, [T, 1].
        unit_map: [T, 1 + MAP_ROWS * capacity] int32; capacity is hidden_stride in units.
        gate: [R, depth]; up where the activation has no gate.
        depth: stored values of a row of gate and up.
        activation: a place in `spec.ACTIVATIONS`.
    """
    token = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    halves: tl.constexpr = codes_per_byte(FORMAT)
    unit_depth: tl.constexpr = halves * RUN_DEPTHS
    capacity = hidden_stride // unit_depth
    unit_map += token * (1 + MAP_ROWS * capacity)

    slot = tl.arange(0, SLOTS)
    experts = expert_of(indices, token, slot, top_k, num_routed)
    there = (slot < slots) & (experts >= 0)
    widths = tl.load(table + TABLE_WIDTH * num_experts + experts, mask=there, other=0)
    ends = tl.cumsum(depth_of(widths, FORMAT), axis=0)
    num_values = tl.max(ends, axis=0)
    if tile == 0:
        missing = tl.max(((slot < slots) & (experts < 0)).to(tl.int32), axis=0)
        tl.store(unit_map, tl.where(missing > 0, -1, num_values // unit_depth))
    if tile * ROWS >= num_values:
        return
    here = tl.sum((ends <= tile * ROWS).to(tl.int32), axis=0)
    expert = tl.sum(tl.where(slot == here, experts, 0), axis=0)
    width = tl.sum(tl.where(slot == here, widths, 0), axis=0)
    end = tl.sum(tl.where(slot == here, ends, 0), axis=0)
    first_value = tile * ROWS - (end - depth_of(width, FORMAT))
    first_row = tl.load(table + TABLE_ROW * num_experts + expert)

    value = first_value + tl.arange(0, ROWS)
    live = value < width
    row = (first_row + value).to(tl.int64)
    lane = tl.arange(0, RUN_DEPTHS)
    units = depth // unit_depth
    parts: tl.constexpr = RUN_DEPTHS // values_per_load(FORMAT)
    a = tl.zeros((ROWS, UNITS, parts), tl.float32)
    b = tl.zeros((ROWS, UNITS, parts), tl.float32)
    for first in range(0, units, UNITS):
        unit = first + tl.arange(0, UNITS)
        at = (row * units)[:, None] + unit[None, :]
        at = (at * RUN_DEPTHS)[:, :, None] + lane[None, None, :]
        inside = live[:, None, None] & (unit < units)[None, :, None]
        of_gate = tl.load(gate + at, mask=inside, other=0)
        of_up = tl.load(up + at, mask=inside, other=0)
        # All that both halves of a byte need is asked for before the first one is used.
        vector, groups_a, groups_b = gate_up_half(
            *(x + token * x_columns, gate_scale, up_scale, gate_zero, up_zero, row, live),
            *(unit * halves, x_columns, scale_stride, group_shift, FORMAT),
        )
        upper = vector
        upper_a = groups_a
        upper_b = groups_b
        if halves == 2:
            upper, upper_a, upper_b = gate_up_half(
                *(x + token * x_columns, gate_scale, up_scale, gate_zero, up_zero, row, live),
                *(unit * halves + 1, x_columns, scale_stride, group_shift, FORMAT),
            )
        a = unit_sums(a, of_gate, vector, groups_a, codebook, 0, FORMAT, ROWS, UNITS)
        b = unit_sums(b, of_up, vector, groups_b, codebook, 0, FORMAT, ROWS, UNITS)
        if halves == 2:
            a = unit_sums(a, of_gate, upper, upper_a, codebook, 1, FORMAT, ROWS, UNITS)
            b = unit_sums(b, of_up, upper, upper_b, codebook, 1, FORMAT, ROWS, UNITS)
    # Also NaN times the zeros that fill up the width has to be zero.
    a_rows = tl.sum(tl.reshape(a, (ROWS, UNITS * parts)), axis=1)
    b_rows = tl.sum(tl.reshape(b, (ROWS, UNITS * parts)), axis=1)
    result = tl.where(live, activated(a_rows, b_rows, activation), 0.0).to(hidden.dtype.element_ty)
    tl.store(hidden + token * hidden_stride + tile * ROWS + tl.arange(0, ROWS), result)

    if first_value % unit_depth == 0:
        unit = first_value // unit_depth
        depth_units = depth_of(width, FORMAT) // unit_depth
        groups = groups_of(width, group_shift)
        first_unit = tl.load(table + TABLE_DEPTH * num_experts + expert) // unit_depth
        first_group = tl.load(table + TABLE_GROUP * num_experts + expert)
        routed = tl.load(weights + token * top_k + here, mask=here < top_k, other=0.0)
        shared = tl.load(shared_weight + token, mask=here >= top_k, other=0.0)
        factor = tl.where(here < top_k, routed, shared).to(tl.float32)
        entry = unit_map + 1 + tile * ROWS // unit_depth
        tl.store(entry + MAP_BASE * capacity, first_unit * num_columns + unit)
        tl.store(entry + MAP_LENGTH * capacity, depth_units)
        group = unit * halves >> group_shift
        tl.store(entry + MAP_GROUP * capacity, first_group * num_columns + group)
        tl.store(entry + MAP_GROUPS * capacity, groups)
        # The upper half may be no more than padding, of which there is no group.
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
    """y[t, d] = the sum over the token's hidden values j, side by side, of factor * hidden[t, j] *
    down[d, j].

    Grid: (tiles of ROWS columns of y, tokens). Where the map says that an index names no expert
    the token's row is NaN: nothing on the device can raise.
    """
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = column < num_columns
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
        there = unit < units
        entry = unit_map + 1 + unit
        base = tl.load(entry + MAP_BASE * capacity, mask=there, other=0)
        length = tl.load(entry + MAP_LENGTH * capacity, mask=there, other=0)
        at = base.to(tl.int64)[None, :] + column[:, None] * length[None, :]
        at = (at * RUN_DEPTHS)[:, :, None] + lane[None, None, :]
        inside = live[:, None, None] & there[None, :, None]
        stored = tl.load(down + at, mask=inside, other=0)
        factor = tl.load(entry + MAP_FACTOR * capacity, mask=there, other=0)
        factor = factor.to(tl.float32, bitcast=True)
        group = tl.load(entry + MAP_GROUP * capacity, mask=there, other=0)
        stride = tl.load(entry + MAP_GROUPS * capacity, mask=there, other=0)
        to_upper = tl.load(entry + MAP_UPPER * capacity, mask=there, other=0)
        of_groups = group.to(tl.int64)[None, :] + column[:, None] * stride[None, :]
        known = live[:, None] & there[None, :]
        for half in tl.static_range(halves):
            value = (unit * halves + half)[:, None] * RUN_DEPTHS + lane[None, :]
            vector = tl.load(hidden + token * hidden_stride + value, mask=there[:, None], other=0.0)
            vector = vector.to(tl.float32) * factor[:, None]
            scale = 1.0
            zero = 0.0
            at_groups = of_groups + half * to_upper[None, :]
            if is_quantized(FORMAT):
                scale = tl.load(down_scale + at_groups, mask=known, other=0.0)
            if has_zero_points(FORMAT):
                zero = tl.load(down_zero + at_groups, mask=known, other=0)
            groups = (scale, zero)
            total = unit_sums(total, stored, vector, groups, codebook, half, FORMAT, ROWS, UNITS)
    result = tl.sum(tl.reshape(total, (ROWS, UNITS * parts)), axis=1)
    result = tl.where(units < 0, float("nan"), result).to(y.dtype.element_ty)
    tl.store(y + token * num_columns + column, result, mask=live)
