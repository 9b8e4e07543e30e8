"""Padding on any side of a prompt: real tokens are moved to the front of their rows and back.

ONNX Runtime's attention takes the number of real tokens as the length of a row, so padding must
follow them. Moving the ids before the embedding and the hidden states before the logits makes any
mask right. The rows of the cache then begin with real tokens too, whatever the mask of the prompt.
A single new token stays where it is.

The graph uses only operators that CUDA has kernels for, and no size of the batch as a number: such
a number lives on the host, and its copy to the device could not be captured into a CUDA graph.

Legend: B batch, S new tokens, T past and new tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import ALL_TOKENS, TOKENS_SHAPE, GraphBuilder


@dataclass(frozen=True)
class FrontOrder:
    """Places of the new tokens once the real ones are at the front of their rows.

    Attributes:
        place_BS: Place of each token within its row, int64.
        row_place_BS: Place of each token among the tokens of the whole batch, int64.
    """

    place_BS: ir.Value
    row_place_BS: ir.Value


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
    return FrontOrder(place_BS, builder.op("Add", place_BS, first, name="padding.row_place"))


def to_front(builder: GraphBuilder, ids_BS: ir.Value, order: FrontOrder) -> ir.Value:
    """Moves the real tokens of each row to its front."""
    return builder.op(
        "ScatterElements", ids_BS, order.place_BS, ids_BS, name="padding.front_ids", axis=1
    )


def to_own_place(builder: GraphBuilder, x_BSD: ir.Value, order: FrontOrder) -> ir.Value:
    """Moves the hidden states of all tokens back to the places of the ids."""
    rows = builder.ints(-1, builder.spec.hidden_size)
    rows_ND = builder.op("Reshape", x_BSD, rows, name="padding.rows")
    builder.describe(rows_ND, ALL_TOKENS, builder.spec.hidden_size)
    return builder.op("Gather", rows_ND, order.row_place_BS, name="padding.own_place", axis=0)
