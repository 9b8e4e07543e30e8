"""Padding on any side of a prompt: real tokens are moved to the front of their rows and back.

ONNX Runtime's attention takes the number of real tokens as the length of a row, so padding must
follow them. Moving the ids before the embedding, and the hidden states back behind the last
attention, makes any mask right. The rows of the cache then begin with real tokens too, whatever the
mask of the prompt. A single new token stays where it is.

The way back also chooses positions: only those from `logits_from` on go through the rest of the
model. Padding behind the tokens of a row gets the hidden state of the last of them, so that the
last position of a row belongs to its last token, wherever the padding is.

The graph uses only operators that CUDA has kernels for, and no size of the batch as a number: such
a number lives on the host, and its copy to the device could not be captured into a CUDA graph.

Legend: B batch, S new tokens, T past and new tokens, L positions with logits, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import ALL_TOKENS, TOKENS_SHAPE, GraphBuilder
from moe_export.variants import LOGITS_FROM


@dataclass(frozen=True)
class FrontOrder:
    """Places of the new tokens once the real ones are at the front of their rows.

    Attributes:
        length: Number of new tokens of a row, padding included, [1] int64.
        real_BS: 1 for a real token and 0 for padding, int64.
        place_BS: Place of each token within its row, int64.
        shown_BL: Places, among the tokens of the whole batch, of the hidden states that the last L
            positions show, int64.
    """

    length: ir.Value
    real_BS: ir.Value
    place_BS: ir.Value
    shown_BL: ir.Value


def front_order(builder: GraphBuilder, ids_BS: ir.Value, mask_BT: ir.Value) -> FrontOrder:
    """Computes the places from the mask [B, T], whose last S columns belong to the new tokens.

    Real tokens come first, then the padding, each in the order of the row.
    """
    length = builder.op("Shape", ids_BS, name="padding.length", start=1, end=2)
    start = builder.op("Neg", length, name="padding.start")
    end, axis = builder.ints(np.iinfo(np.int64).max), builder.ints(1)
    real_BS = builder.op("Slice", mask_BT, start, end, axis, name="padding.real")
    builder.describe(real_BS, *TOKENS_SHAPE, dtype=ir.DataType.INT64)
    pad_BS = builder.op("Sub", builder.ints(1), real_BS, name="padding.pad")
    both = builder.op("Concat", real_BS, pad_BS, name="padding.both", axis=1)
    # The number of real tokens before a real one, and of all real ones and padding before padding.
    before = builder.op("CumSum", both, axis, name="padding.before", exclusive=1)
    real_place, pad_place = builder.ops(
        "Split", before, name="padding.places", num_outputs=2, axis=1
    )
    for place in (real_place, pad_place):
        builder.describe(place, *TOKENS_SHAPE, dtype=ir.DataType.INT64)
    is_real = builder.op("Cast", real_BS, name="padding.is_real", to=ir.DataType.BOOL.value)
    place_BS = builder.op("Where", is_real, real_place, pad_place, name="padding.place")
    length_B1 = builder.op("ReduceSum", both, axis, name="padding.row_length")
    first = builder.op("CumSum", length_B1, builder.ints(0), name="padding.row_start", exclusive=1)
    # The last real token at or before each position; a position before all of them keeps its own.
    reached = builder.op("Add", real_place, real_BS, name="padding.reached")
    is_reached = builder.op("Cast", reached, name="padding.is_reached", to=ir.DataType.BOOL.value)
    latest = builder.op("Sub", reached, builder.ints(1), name="padding.latest")
    shown_BS = builder.op("Where", is_reached, latest, place_BS, name="padding.shown")
    row_place = builder.op("Add", shown_BS, first, name="padding.row_place")
    start = builder.initializer(ir.Tensor(np.array([0], np.int64), name=LOGITS_FROM))
    shown_BL = builder.op("Slice", row_place, start, end, axis, name="padding.chosen")
    return FrontOrder(length, real_BS, place_BS, shown_BL)


def new_tokens(builder: GraphBuilder, order: FrontOrder) -> ir.Value:
    """Number of real new tokens of each row, [B, 1] int64.

    A single new token is always real. The mask of a static cache says so at another place than the
    last, which belongs to room for later tokens.
    """
    real_B1 = builder.op(
        "ReduceSum", order.real_BS, builder.ints(1), name="padding.real_tokens", keepdims=1
    )
    single = builder.op("Sub", builder.ints(2), order.length, name="padding.single")
    return builder.op("Max", real_B1, single, name="padding.new_tokens")


def real_places(builder: GraphBuilder, order: FrontOrder, tokens_B1: ir.Value) -> ir.Value:
    """True for the real tokens once they are at the front, [B, S, 1].

    Args:
        builder: Graph that the nodes are added to.
        order: Result of `front_order`.
        tokens_B1: Result of `new_tokens`.
    """
    length = builder.op("Squeeze", order.length, name="padding.length_scalar")
    first, step = (builder.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1))
    place_S = builder.op("Range", first, length, step, name="padding.front_places")
    is_real = builder.op("Less", place_S, tokens_B1, name="padding.is_real_row")
    return builder.op("Unsqueeze", is_real, builder.ints(2), name="padding.is_real_place")


def to_front(builder: GraphBuilder, ids_BS: ir.Value, order: FrontOrder) -> ir.Value:
    """Moves the real tokens of each row to its front."""
    return builder.op(
        "ScatterElements", ids_BS, order.place_BS, ids_BS, name="padding.front_ids", axis=1
    )


def to_own_place(builder: GraphBuilder, x_BSD: ir.Value, order: FrontOrder) -> ir.Value:
    """Moves the hidden states of the chosen positions back to the places of the ids."""
    rows = builder.ints(-1, builder.spec.hidden_size)
    rows_ND = builder.op("Reshape", x_BSD, rows, name=f"{x_BSD.name}.rows")
    builder.describe(rows_ND, ALL_TOKENS, builder.spec.hidden_size)
    return builder.op("Gather", rows_ND, order.shown_BL, name=f"{x_BSD.name}.chosen", axis=0)
