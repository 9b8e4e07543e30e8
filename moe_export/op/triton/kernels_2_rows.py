"""Few tokens: each pair reads its expert's weights by itself, as a matrix times a vector.

Two launches make a layer. Nothing is sorted, and y comes out of the second one: with down stored by
output, a program that owns some columns of y can walk through all of a token's experts.

Bound by the bytes of the weights. A program reads ROWS rows, COLUMNS depths at a time, 16 bytes to
a load, and keeps one sum per thread until the end.

Legend: D hidden, S slots per token, w width of an expert, p pair (token * S + slot).
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
    expert_of,
    lower_depth,
)


@triton.jit
def add_products(
    total,
    vector,
    num_values,
    factor,
    weights,
    scales,
    zeros,
    codebook,
    rows,
    live,
    first,
    depth,
    scale_stride,
    group_shift,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Total [ROWS, COLUMNS] plus weights * vector, for the depths from `first` on.

    In four bits COLUMNS counts bytes, so that twice as many depths are covered.

    Args:
        vector: to num_values values; a multiple of 16 of them.
        factor: of the vector.
        weights: to row 0, whose rows hold `depth` values.
        scales: to row 0.
        zeros: likewise, zero points; not read in formats without any.
        codebook: of nf4; not read otherwise.
        rows: [ROWS] row numbers.
        live: which of them exist.
    """
    halves: tl.constexpr = codes_per_byte(FORMAT)
    place = first // halves + tl.arange(0, COLUMNS)
    at = rows.to(tl.int64)[:, None] * (depth // halves) + place[None, :]
    inside = live[:, None] & (place < depth // halves)[None, :]
    if FORMAT == "float32" or FORMAT == "float16" or FORMAT == "bfloat16":
        value = tl.load(vector + place, mask=place < num_values, other=0.0).to(tl.float32) * factor
        weight = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        total += weight * value[None, :]
    else:
        codes = tl.load(weights + at, mask=inside, other=0)
        run = halves * tl.arange(0, COLUMNS // RUN_DEPTHS) + first // RUN_DEPTHS
        for half in tl.static_range(halves):
            if halves == 2:
                code = (codes >> (4 * half)) & 15
                column = lower_depth(place) + half * RUN_DEPTHS
            else:
                code = codes
                column = place
            value = tl.load(vector + column, mask=column < num_values, other=0.0)
            weight = decoded(
                code,
                scales,
                zeros,
                codebook,
                run + half,
                scale_stride,
                rows,
                live,
                group_shift,
                FORMAT,
                ROWS,
                COLUMNS // RUN_DEPTHS,
                tl.float32,
            )
            total += weight * (value.to(tl.float32) * factor)[None, :]
    return total


@triton.jit
def gate_up_rows(
    x,
    indices,
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
    top_k,
    slots,
    num_routed,
    num_experts,
    activation,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """hidden[p, j] = silu(x[t] . gate[j]) * (x[t] . up[j]) for the units j of the pair's expert,
    or what another activation makes of the two.

    Grid: (tiles of ROWS units of the widest expert, pairs).

    Args:
        x: [T, x_columns], x_columns a multiple of 16.
        hidden: [pairs, hidden_stride]; written up to the expert's padded width, with zeros.
        gate: [R, depth]; up where the activation has no gate.
        depth: stored values of a row of gate and up.
        activation: a place in `spec.ACTIVATIONS`.
    """
    pair = tl.program_id(1)
    token = (pair // slots).to(tl.int64)
    expert = expert_of(indices, token, pair % slots, top_k, num_routed)
    width = tl.load(table + TABLE_WIDTH * num_experts + expert, mask=expert >= 0, other=0)
    unit = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    stored = depth_of(width, FORMAT)
    if tl.program_id(0) * ROWS >= stored:
        return
    first_row = tl.load(table + TABLE_ROW * num_experts + expert)
    live = unit < width
    step: tl.constexpr = COLUMNS * codes_per_byte(FORMAT)
    a = tl.zeros((ROWS, COLUMNS), tl.float32)
    b = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, depth, step):
        a = add_products(
            a,
            x + token * x_columns,
            x_columns,
            1.0,
            gate,
            gate_scale,
            gate_zero,
            codebook,
            first_row + unit,
            live,
            first,
            depth,
            scale_stride,
            group_shift,
            FORMAT,
            ROWS,
            COLUMNS,
        )
        b = add_products(
            b,
            x + token * x_columns,
            x_columns,
            1.0,
            up,
            up_scale,
            up_zero,
            codebook,
            first_row + unit,
            live,
            first,
            depth,
            scale_stride,
            group_shift,
            FORMAT,
            ROWS,
            COLUMNS,
        )
    value = activated(tl.sum(a, axis=1), tl.sum(b, axis=1), activation)
    # Also NaN times the zeros that fill up the width has to be zero.
    value = tl.where(live, value, 0.0).to(hidden.dtype.element_ty)
    tl.store(hidden + pair.to(tl.int64) * hidden_stride + unit, value, mask=unit < stored)


@triton.jit
def down_rows(
    hidden,
    indices,
    weights,
    shared_weight,
    y,
    down,
    down_scale,
    down_zero,
    codebook,
    table,
    num_columns,
    hidden_stride,
    group_shift,
    top_k,
    slots,
    num_routed,
    num_experts,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """y[t, d] = the sum over a token's slots of weight * (hidden[p] . down[d]), slot after slot.

    Grid: (tiles of ROWS columns of y, tokens). An index that names no expert makes the token's row
    NaN: nothing on the device can raise.
    """
    token = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = column < num_columns
    step: tl.constexpr = COLUMNS * codes_per_byte(FORMAT)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for slot in range(slots):
        expert = expert_of(indices, token, slot, top_k, num_routed)
        if expert < 0:
            total += float("nan")
        else:
            width = tl.load(table + TABLE_WIDTH * num_experts + expert)
            first_depth = tl.load(table + TABLE_DEPTH * num_experts + expert).to(tl.int64)
            first_group = tl.load(table + TABLE_GROUP * num_experts + expert).to(tl.int64)
            routed = tl.load(weights + token * top_k + slot, mask=slot < top_k, other=0.0)
            shared = tl.load(shared_weight + token, mask=slot >= top_k, other=0.0)
            factor = tl.where(slot < top_k, routed, shared).to(tl.float32)
            depth = depth_of(width, FORMAT)
            groups = (width + (RUN_DEPTHS << group_shift) - 1) // (RUN_DEPTHS << group_shift)
            first_stored = tl.multiple_of(first_depth // codes_per_byte(FORMAT), 32)
            for first in range(0, depth, step):
                total = add_products(
                    total,
                    hidden + (token * slots + slot) * hidden_stride,
                    depth,
                    factor,
                    down + first_stored * num_columns,
                    down_scale + first_group * num_columns,
                    down_zero + first_group * num_columns,
                    codebook,
                    column,
                    live,
                    first,
                    depth,
                    groups,
                    group_shift,
                    FORMAT,
                    ROWS,
                    COLUMNS,
                )
    value = tl.sum(total, axis=1).to(y.dtype.element_ty)
    tl.store(y + token * num_columns + column, value, mask=live)
