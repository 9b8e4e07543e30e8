"""Gated short convolution over the last few tokens of each channel (LFM2).

Its state is the input of the convolution at the last real tokens of a row. The graph has standard
operators: ONNX Runtime's fused operator keeps the last positions of a row, which may be padding,
and its `Conv` takes ten times as long for one token as products with shifted rows.

Legend: B batch, S new tokens, D channels (the hidden size), K taps, P = K - 1, T = P + S.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.families.states import layer_states
from moe_export.graph.builder import TOKENS_SHAPE, GraphBuilder


def short_convolution(
    builder: GraphBuilder, x: ir.Value, new_tokens: ir.Value, layer: int
) -> ir.Value:
    """Mixer out(c ⊙ convolution(b ⊙ v)) of a layer, with b, c and v from one product with x.

    Args:
        builder: Graph that the nodes are added to.
        x: Normalized hidden states, [batch, sequence, hidden].
        new_tokens: Number of real new tokens of each row, [batch, 1] int64.
        layer: Number of the layer.

    Returns:
        Output [batch, sequence, hidden], before the residual stream is added.
    """
    spec, prefix = builder.spec, f"layers.{layer}.convolution"
    product = builder.linear(x, "conv_in", name=f"{prefix}.in", layer=layer)
    sizes = builder.ints(*(spec.hidden_size,) * 3)
    before, after, value = builder.ops(
        "Split", product, sizes, name=f"{prefix}.parts", num_outputs=3, axis=-1
    )
    gated = builder.op("Mul", before, value, name=f"{prefix}.gated")
    mixed = stateful_convolution(
        builder, gated, "conv", new_tokens, layer, spec.hidden_size, spec.convolution_taps
    )
    mixed = builder.op("Mul", after, mixed, name=f"{prefix}.mixed")
    return builder.linear(mixed, "conv_out", name=f"{prefix}.out", layer=layer)


def stateful_convolution(
    builder: GraphBuilder,
    x_BSD: ir.Value,
    role: str,
    new_tokens: ir.Value,
    layer: int,
    channels: int,
    taps: int,
) -> ir.Value:
    """Causal convolution [B, S, D] of each channel by itself, which continues that of the past.

    Args:
        builder: Graph that the nodes are added to.
        x_BSD: Input, real tokens first.
        role: Role of the weights [D, 1, K].
        new_tokens: Number of real new tokens of each row, [batch, 1] int64.
        layer: Number of the layer.
        channels: Number of channels D.
        taps: Number of taps K.
    """
    prefix = f"layers.{layer}.convolution"
    state = next(s for s in layer_states(builder.spec, layer) if s.past.endswith("conv_state"))
    past_BDP = builder.input(state.past, builder.float_type, ("batch_size", *state.shape(0)))
    past_BPD = builder.op("Transpose", past_BDP, name=f"{prefix}.past", perm=[0, 2, 1])
    long_BTD = builder.op("Concat", past_BPD, x_BSD, name=f"{prefix}.continued", axis=1)
    y_BSD = _sums(builder, long_BTD, x_BSD, role, layer, taps)
    # The new state ends with the last real token, not with padding behind it.
    offsets_P = builder.constant(f"offsets_{taps - 1}", np.arange(taps - 1))
    place_BP = builder.op("Add", new_tokens, offsets_P, name=f"{prefix}.last")
    place_BP1 = builder.op("Unsqueeze", place_BP, builder.ints(2), name=f"{prefix}.last_places")
    present_BPD = builder.op(
        "GatherND", long_BTD, place_BP1, name=f"{prefix}.state_rows", batch_dims=1
    )
    present_BDP = builder.op("Transpose", present_BPD, name=f"{prefix}.state", perm=[0, 2, 1])
    builder.output(present_BDP, state.present, ("batch_size", *state.shape(0)))
    return builder.describe(y_BSD, *TOKENS_SHAPE, channels)


def _sums(
    builder: GraphBuilder, long_BTD: ir.Value, x_BSD: ir.Value, role: str, layer: int, taps: int
) -> ir.Value:
    """Sums [B, S, D] over the taps of shifted rows times the tap's weights, in float32."""
    prefix = f"layers.{layer}.convolution"
    weight_D1K = builder.weight(role, layer=layer)
    # ONNX Runtime computes these of the weights once, when it loads the model.
    weight_1KD = builder.op("Transpose", weight_D1K, name=f"{prefix}.weights", perm=[1, 2, 0])
    narrow = builder.dtype != "float32"
    if narrow:
        wide = ir.DataType.FLOAT.value
        weight_1KD = builder.op("Cast", weight_1KD, name=f"{prefix}.wide_weights", to=wide)
        long_BTD = builder.op("Cast", long_BTD, name=f"{prefix}.wide", to=wide)
    weights_11D = builder.ops(
        "Split",
        weight_1KD,
        builder.ints(*(1,) * taps),
        name=f"{prefix}.tap",
        num_outputs=taps,
        axis=1,
    )
    tokens_1 = builder.op("Shape", x_BSD, name=f"{prefix}.tokens", start=1, end=2)
    sum_BSD: ir.Value | None = None
    for tap, weight_11D in enumerate(weights_11D):
        name = f"{prefix}.{tap}"
        first = builder.ints(tap)
        last = builder.op("Add", tokens_1, first, name=f"{name}.end")
        rows_BSD = builder.op("Slice", long_BTD, first, last, builder.ints(1), name=f"{name}.rows")
        product_BSD = builder.op("Mul", rows_BSD, weight_11D, name=f"{name}.product")
        if sum_BSD is None:
            sum_BSD = product_BSD
        else:
            sum_BSD = builder.op("Add", sum_BSD, product_BSD, name=f"{name}.sum")
    assert sum_BSD is not None  # a convolution has at least one tap
    if not narrow:
        return sum_BSD
    return builder.op("Cast", sum_BSD, name=prefix, to=builder.float_type.value)
