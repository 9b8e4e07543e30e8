"""Decoding of stored weights, and the kernels beside the products: grouping, padding, adding up.

Version 1 of 3, from plain to fast: what the product kernels of `kernels_2_rows` (few tokens) and
`kernels_3_tiles` (many tokens) share. The layout of the weights is `device_layout`. All three files
need a GPU to be timed: `python -m moe_export.gpu_check --parts layers` times whole layers,
`--parts shapes` each kernel alone.

Legend: T tokens, D hidden, K experts chosen per token, S slots per token (K, and one more with a
shared expert), E experts (the shared one last), p pair (token * S + slot).
"""

import triton
import triton.language as tl

from moe_export.op.reference import GELU_CUBIC, GELU_LINEAR
from moe_export.op.spec import ACTIVATIONS
from moe_export.op.triton import device_layout
from moe_export.op.triton.device_layout import DEPTH, GROUP, ROW, RUN, WIDTH

codes_per_byte = triton.constexpr_function(device_layout.codes_per_byte)
is_quantized = triton.constexpr_function(device_layout.is_quantized)
has_zero_points = triton.constexpr_function(device_layout.has_zero_points)
values_per_load = triton.constexpr_function(device_layout.values_per_load)

# A kernel may read a global only if it is a tl.constexpr.
RUN_DEPTHS = tl.constexpr(RUN)
RUN_SHIFT = tl.constexpr(RUN.bit_length() - 1)
TABLE_WIDTH = tl.constexpr(WIDTH)
TABLE_ROW = tl.constexpr(ROW)
TABLE_DEPTH = tl.constexpr(DEPTH)
TABLE_GROUP = tl.constexpr(GROUP)
OF_SIGMOID = tl.constexpr(GELU_LINEAR)
OF_SIGMOID_CUBED = tl.constexpr(GELU_CUBIC)
GEGLU = tl.constexpr(ACTIVATIONS.index("geglu"))
RELU = tl.constexpr(ACTIVATIONS.index("relu"))
RELU2 = tl.constexpr(ACTIVATIONS.index("relu2"))


@triton.jit
def expert_of(indices, token, slot, top_k, num_routed):
    """Expert of a slot, int32: the shared one beyond top_k, -1 where the index names no expert."""
    routed = tl.load(indices + token * top_k + slot, mask=slot < top_k, other=num_routed)
    in_range = (routed >= 0) & (routed < num_routed)
    return tl.where((slot < top_k) & ~in_range, -1, routed).to(tl.int32)


@triton.jit
def stored_depth(width, FORMAT: tl.constexpr):
    """Length of a stored row of `width` values: in values, or in bytes of codes."""
    unit: tl.constexpr = RUN_DEPTHS * codes_per_byte(FORMAT)
    return tl.multiple_of((width + unit - 1) // unit * RUN_DEPTHS, 32)


@triton.jit
def depth_of(width, FORMAT: tl.constexpr):
    """Padded depth of a row of `width` values, as `device_layout.padded_depth`."""
    return stored_depth(width, FORMAT) * codes_per_byte(FORMAT)


@triton.jit
def groups_of(width, group_shift):
    """Number of groups in a row of `width` values; a group is RUN << group_shift values."""
    return (width + (RUN_DEPTHS << group_shift) - 1) >> (RUN_SHIFT + group_shift)


@triton.jit
def lower_depth(byte):
    """Depth of the lower nibble of a row's byte; that of the upper nibble is RUN more.

    A block of 2 * RUN depths lies in RUN bytes: byte j holds depth j and depth RUN + j.
    """
    return byte // RUN_DEPTHS * (2 * RUN_DEPTHS) + byte % RUN_DEPTHS


@triton.jit
def whole_number(code, OFFSET: tl.constexpr, dtype: tl.constexpr):
    """Code - OFFSET as a float, for codes below 256.

    The code is written into the last bits of 2^23 (2^10 in float16) and the power is subtracted.
    That is exact and, unlike a conversion, runs at the full rate of the arithmetic units.
    """
    if dtype == tl.float16:
        value = (code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + OFFSET)
    else:
        value = (code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)
    return value.to(dtype)


@triton.jit
def looked_up(codebook, codes):
    """Values of nf4 codes [N], gathered from a table in shared memory.

    Loads from global memory would queue behind those of the weights.
    """
    return tl.gather(tl.load(codebook + tl.arange(0, 16)), codes.to(tl.int32), 0)


@triton.jit
def group_tile(groups, run, stride, rows, group_shift):
    """Scale or zero point of each run of depths, [ROWS, RUNS].

    Args:
        groups: pointer to the scales or zero points of row 0, [rows, stride].
        run: indices of the runs, [RUNS].
        stride: number of groups in a row.
        rows: row indices [ROWS], and a mask of the rows that exist [ROWS].
        group_shift: log2 of the number of runs in a group.
    """
    row, row_exists = rows
    group = run >> group_shift
    offset = row[:, None] * stride + group[None, :]
    mask = row_exists[:, None] & (group < stride)[None, :]
    return tl.load(groups + offset, mask=mask, other=0)


@triton.jit
def expanded(per_run, ROWS: tl.constexpr, RUNS: tl.constexpr):
    """Values [ROWS, RUNS] repeated for every depth of their run, [ROWS, RUNS * RUN_DEPTHS]."""
    spread = tl.broadcast_to(tl.expand_dims(per_run, 2), (ROWS, RUNS, RUN_DEPTHS))
    return tl.reshape(spread, (ROWS, RUNS * RUN_DEPTHS))


@triton.jit
def decoded(
    codes,
    scale,
    zero,
    codebook,
    FORMAT: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
    dtype: tl.constexpr,
):
    """Weights of codes [ROWS, RUNS * RUN_DEPTHS], with scale and zero point from `group_tile`.

    Values beyond a row's end are finite, and are multiplied by zeros of x or hidden.
    """
    if FORMAT == "nf4":
        value = looked_up(codebook, tl.reshape(codes, (ROWS * RUNS * RUN_DEPTHS,)))
        value = tl.reshape(value, (ROWS, RUNS * RUN_DEPTHS))
        value = (value * expanded(scale.to(tl.float32), ROWS, RUNS)).to(dtype)
    elif FORMAT == "int4":
        value = whole_number(codes, 8, dtype) * expanded(scale.to(dtype), ROWS, RUNS)
    elif FORMAT == "int8":
        value = whole_number(codes, 128, dtype) * expanded(scale.to(dtype), ROWS, RUNS)
    else:
        value = whole_number(codes, 0, dtype) - expanded(zero.to(dtype), ROWS, RUNS)
        value *= expanded(scale.to(dtype), ROWS, RUNS)
    return value


@triton.jit
def activated(a, b, activation):
    """Hidden value, float32, of gate's product a and up's product b; without a gate a is up's.

    Args:
        activation: index in `spec.ACTIVATIONS`; an argument at run time, since its cost is nothing
            beside the products and one binary then serves all activations.
    """
    argument = tl.where(activation == GEGLU, a * (OF_SIGMOID + OF_SIGMOID_CUBED * a * a), a)
    positive = tl.where(a < 0, 0.0, a)  # unlike a maximum it keeps NaN
    value = tl.where(activation < RELU, a * tl.sigmoid(argument), positive)
    value = tl.where(activation == RELU2, value * value, value)
    return tl.where(activation <= GEGLU, value * b, value)


@triton.jit
def group_pairs(
    indices, pairs, starts, counts, num_tokens, top_k, slots, num_routed, BLOCK: tl.constexpr
):
    """Sorts the pairs by expert and then by token; one program per expert.

    A program counts the pairs of all earlier experts, then writes its own behind them. It reads all
    indices twice and waits for no other program.

    Writes:
        pairs: sorted pairs, [T * S] int32.
        starts: first place of each expert in `pairs`, [E] int32.
        counts: number of pairs of each expert, [E] int32.
    """
    expert = tl.program_id(0)
    total = num_tokens * top_k
    lane = tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, total, BLOCK):
        place = first + lane
        chosen = tl.load(indices + place, mask=place < total, other=num_routed)
        before += (chosen < expert).to(tl.int32)
    start = tl.sum(before, axis=0)
    done = 0
    if expert < num_routed:
        for first in range(0, total, BLOCK):
            place = first + lane
            chosen = tl.load(indices + place, mask=place < total, other=-1)
            mine = (chosen == expert).to(tl.int32)
            # The running count numbers the pairs of this expert from 1.
            target = start + done + tl.cumsum(mine, axis=0) - 1
            # The place is token * top_k + slot; the pair's number is token * slots + slot.
            pair = place // top_k * slots + place % top_k
            tl.store(pairs + target, pair, mask=mine == 1)
            done += tl.sum(mine, axis=0)
    else:
        for first in range(0, num_tokens, BLOCK):
            token = first + lane
            tl.store(pairs + start + token, token * slots + top_k, mask=token < num_tokens)
        done += num_tokens
    tl.store(starts + expert, start)
    tl.store(counts + expert, done)


@triton.jit
def pad_rows(x, padded, num_columns, padded_columns, BLOCK: tl.constexpr):
    """Copies x [T, D] into rows that begin at multiples of 16 values, with zeros at their ends.

    Runs only where the hidden size is no multiple of 16 or x is not aligned: the products load 16
    bytes at a time.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + token * num_columns + column, mask=column < num_columns, other=0.0)
    tl.store(padded + token * padded_columns + column, value, mask=column < padded_columns)


@triton.jit
def scale_rows(x, scale, scaled, num_tokens, num_columns, padded_columns, BLOCK: tl.constexpr):
    """scaled[t] = x[t] * scale[t] for x [T, D], in rows as `pad_rows` writes them.

    Grid: (T, tiles of BLOCK columns), or twice as many rows: then rows T + t are those of x, for
    the shared expert, which is not scaled.
    """
    row = tl.program_id(0)
    is_scaled = row < num_tokens
    token = tl.where(is_scaled, row, row - num_tokens).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = token * num_columns + column
    value = tl.load(x + place, mask=column < num_columns, other=0.0).to(tl.float32)
    num_scaled = tl.where(is_scaled, num_columns, 0)
    value *= tl.load(scale + place, mask=column < num_scaled, other=1.0).to(tl.float32)
    target = scaled + row.to(tl.int64) * padded_columns + column
    tl.store(target, value.to(scaled.dtype.element_ty), mask=column < padded_columns)


@triton.jit
def shift_pairs(pairs, shifted, num_pairs, num_tokens, top_k, slots, BLOCK: tl.constexpr):
    """Copies pairs; those of the shared expert take row T + t of `scale_rows` for their token."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair = tl.load(pairs + place, mask=place < num_pairs, other=0)
    pair = tl.where(pair % slots < top_k, pair, pair + num_tokens * slots)
    tl.store(shifted + place, pair, mask=place < num_pairs)


@triton.jit
def scale_pairs(
    hidden,
    indices,
    pairs,
    starts,
    counts,
    hidden_scale,
    columns,
    table,
    hidden_stride,
    scale_columns,
    has_columns,
    top_k,
    slots,
    num_routed,
    num_experts,
    BLOCK: tl.constexpr,
):
    """hidden[i, j] *= hidden_scale[t, columns[j]] for the pair in place i, of token t; not where
    its expert is the shared one.

    Grid: (pairs, tiles of BLOCK hidden values).

    Args:
        columns: column of hidden_scale for each row of gate and up, [R] int32; not read unless
            has_columns is 1: then the rows of an expert take the columns 0 to w - 1.
    """
    place = tl.program_id(0)
    last = num_experts - 1
    # Negative indices leave places free before the first pair, those beyond the experts at the end.
    if (place < tl.load(starts)) | (place >= tl.load(starts + last) + tl.load(counts + last)):
        return
    pair = tl.load(pairs + place)
    slot = pair % slots
    if slot >= top_k:
        return
    token = (pair // slots).to(tl.int64)
    expert = expert_of(indices, token, slot, top_k, num_routed)
    value = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width = tl.load(table + TABLE_WIDTH * num_experts + expert)
    exists = value < width
    row = tl.load(table + TABLE_ROW * num_experts + expert) + value
    num_mapped = tl.where(has_columns != 0, width, 0)
    column = tl.load(columns + row, mask=value < num_mapped, other=0)
    column = tl.where(has_columns != 0, column, value)
    factor = tl.load(hidden_scale + token * scale_columns + column, mask=exists, other=0.0)
    target = hidden + place.to(tl.int64) * hidden_stride + value
    result = tl.load(target, mask=exists, other=0.0).to(tl.float32) * factor.to(tl.float32)
    tl.store(target, result.to(hidden.dtype.element_ty), mask=exists)


@triton.jit
def add_pairs(
    out,
    indices,
    weights,
    shared_weight,
    y,
    table,
    num_columns,
    out_stride,
    top_k,
    slots,
    num_routed,
    BLOCK: tl.constexpr,
):
    """y[t] = sum over a token's slots of weight * out, in the order of the slots.

    An index that names no expert makes the token's row NaN: a kernel cannot raise an error.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column_exists = column < num_columns
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(slots):
        expert = expert_of(indices, token, slot, top_k, num_routed)
        width = tl.load(table + expert, mask=expert >= 0, other=0)
        routed = tl.load(weights + token * top_k + slot, mask=slot < top_k, other=0.0)
        shared = tl.load(shared_weight + token, mask=slot >= top_k, other=0.0)
        weight = tl.where(slot < top_k, routed, shared).to(tl.float32)
        # No kernel writes the output of an expert of width 0.
        value = tl.load(
            out + (token * slots + slot) * out_stride + column,
            mask=column < tl.where(width > 0, out_stride, 0),
            other=0.0,
        )
        term = tl.where(width > 0, weight * value.to(tl.float32), 0.0)
        total += tl.where(expert >= 0, term, float("nan"))
    tl.store(y + token * num_columns + column, total.to(y.dtype.element_ty), mask=column_exists)
