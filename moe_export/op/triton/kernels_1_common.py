"""Reading packed weights, and the kernels beside the products: grouping, padding, adding up.

Legend: T tokens, D hidden, K experts chosen per token, S slots per token (K, and one more with a
shared expert), E experts (the shared one last), p pair (token * S + slot).
"""

import triton
import triton.language as tl

from moe_export.op.reference import GELU_CUBIC, GELU_LINEAR
from moe_export.op.spec import ACTIVATIONS
from moe_export.op.triton import packed
from moe_export.op.triton.packed import DEPTH, GROUP, ROW, RUN, WIDTH

codes_per_byte = triton.constexpr_function(packed.codes_per_byte)
is_quantized = triton.constexpr_function(packed.is_quantized)
has_zero_points = triton.constexpr_function(packed.has_zero_points)
values_per_load = triton.constexpr_function(packed.values_per_load)

# Kernels may use a global only if it is declared to be constant.
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
    """The expert of a slot; out of 0 to E - 1 if the model's index is."""
    routed = tl.load(indices + token * top_k + slot, mask=slot < top_k, other=num_routed)
    in_range = (routed >= 0) & (routed < num_routed)
    return tl.where((slot < top_k) & ~in_range, -1, routed).to(tl.int32)


@triton.jit
def stored_depth(width, FORMAT: tl.constexpr):
    """What a row of `width` values is stored in: values, or bytes of codes."""
    unit: tl.constexpr = RUN_DEPTHS * codes_per_byte(FORMAT)
    return tl.multiple_of((width + unit - 1) // unit * RUN_DEPTHS, 32)


@triton.jit
def depth_of(width, FORMAT: tl.constexpr):
    """The depth that a row of `width` values is stored with, as `packed.padded_depth`."""
    return stored_depth(width, FORMAT) * codes_per_byte(FORMAT)


@triton.jit
def groups_of(width, group_shift):
    """Groups of a row of `width` values."""
    return (width + (RUN_DEPTHS << group_shift) - 1) >> (RUN_SHIFT + group_shift)


@triton.jit
def lower_depth(byte):
    """The depth that the lower nibble of a row's byte is of; the upper one's is RUN more."""
    return byte // RUN_DEPTHS * (2 * RUN_DEPTHS) + byte % RUN_DEPTHS


@triton.jit
def whole_number(code, OFFSET: tl.constexpr, dtype: tl.constexpr):
    """Code - OFFSET as a float, for codes below 256.

    The code becomes the last bits of 2^23 (of 2^10 in float16), which is exact and, unlike a
    conversion, runs at the full rate of the arithmetic units.
    """
    if dtype == tl.float16:
        value = (code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - (1024.0 + OFFSET)
    else:
        value = (code.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + OFFSET)
    return value.to(dtype)


@triton.jit
def looked_up(codebook, codes):
    """The values of nf4's codes, [N], from a table that the threads of a program share: a load
    from global memory for each would wait in line with those of the weights.
    """
    return tl.gather(tl.load(codebook + tl.arange(0, 16)), codes.to(tl.int32), 0)


@triton.jit
def group_tile(of_groups, run, stride, rows, live, group_shift):
    """The scale or zero point of each run of depths, [ROWS, RUNS].

    Args:
        of_groups: to row 0.
        run: number of the runs, [RUNS].
        stride: groups of a row.
        rows: [ROWS].
        live: which rows exist, [ROWS].
        group_shift: log2 of runs to a group.
    """
    group = run >> group_shift
    at = rows[:, None] * stride + group[None, :]
    return tl.load(of_groups + at, mask=live[:, None] & (group < stride)[None, :], other=0)


@triton.jit
def expanded(of_runs, ROWS: tl.constexpr, RUNS: tl.constexpr):
    """A number of each run for each of its depths, [ROWS, RUNS * RUN_DEPTHS]."""
    spread = tl.broadcast_to(tl.expand_dims(of_runs, 2), (ROWS, RUNS, RUN_DEPTHS))
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
    """What codes [ROWS, RUNS * RUN_DEPTHS] stand for; scale and zero point by `group_tile`.

    What is beyond a row's end is finite and meets zeros in x or hidden.
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
    """The hidden value of gate's product a and up's b, float32; without a gate a is up's.

    Args:
        activation: a place in `spec.ACTIVATIONS`. A number and no constant: what it costs is
            nothing beside the products, and one binary serves all.
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
    """Sorts the pairs by expert and then by token; one program for each expert.

    A program counts the pairs of the experts before its own, and then writes its own from there
    on. Each reads all indices twice, and none waits for another.

    Writes:
        pairs: [T * S] int32.
        starts: first place of each expert in it, [E] int32.
        counts: number of its pairs, [E] int32.
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
            at = start + done + tl.cumsum(mine, axis=0) - 1
            pair = place // top_k * slots + place % top_k
            tl.store(pairs + at, pair, mask=mine == 1)
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
    """Copies x [T, D] into rows that begin at multiples of 16 values, zeros at their ends.

    Only for a hidden size that is no multiple of 16, so that the products may load 16 bytes at a
    time.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + token * num_columns + column, mask=column < num_columns, other=0.0)
    tl.store(padded + token * padded_columns + column, value, mask=column < padded_columns)


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
    """y[t] = the sum over a token's slots of weight * out, slot after slot.

    An index that names no expert makes the token's row NaN: nothing on the device can raise.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < num_columns
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(slots):
        expert = expert_of(indices, token, slot, top_k, num_routed)
        width = tl.load(table + expert, mask=expert >= 0, other=0)
        routed = tl.load(weights + token * top_k + slot, mask=slot < top_k, other=0.0)
        shared = tl.load(shared_weight + token, mask=slot >= top_k, other=0.0)
        weight = tl.where(slot < top_k, routed, shared).to(tl.float32)
        # What an expert of width 0 gives is not written by anyone.
        value = tl.load(
            out + (token * slots + slot) * out_stride + column,
            mask=column < tl.where(width > 0, out_stride, 0),
            other=0.0,
        )
        term = tl.where(width > 0, weight * value.to(tl.float32), 0.0)
        total += tl.where(expert >= 0, term, float("nan"))
    tl.store(y + token * num_columns + column, total.to(y.dtype.element_ty), mask=inside)
