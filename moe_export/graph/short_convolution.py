"""Gated short convolution over the last few tokens of each channel (LFM2).

Its state is the input of the convolution at the last real tokens of a row. The graph has standard
operators: ONNX Runtime's fused operator keeps the last positions of a row, which may be padding.

Legend: B batch, S new tokens, D channels (the hidden size), K taps.
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
    x_BDS = builder.op("Transpose", x_BSD, name=f"{prefix}.channels", perm=[0, 2, 1])
    long_BDT = builder.op("Concat", past_BDP, x_BDS, name=f"{prefix}.continued", axis=2)
    weight = builder.weight(role, layer=layer)
    y_BDS = builder.op("Conv", long_BDT, weight, name=f"{prefix}.sums", group=channels)
    # The new state ends with the last real token, not with padding behind it.
    offsets_P = builder.constant(f"offsets_{taps - 1}", np.arange(taps - 1))
    place_BP = builder.op("Add", new_tokens, offsets_P, name=f"{prefix}.last")
    place_B1P = builder.op("Unsqueeze", place_BP, builder.ints(1), name=f"{prefix}.last_rows")
    place_BDP = builder.op(
        "Expand", place_B1P, builder.ints(1, channels, 1), name=f"{prefix}.last_places"
    )
    present_BDP = builder.op("GatherElements", long_BDT, place_BDP, name=f"{prefix}.state", axis=2)
    builder.output(present_BDP, state.present, ("batch_size", *state.shape(0)))
    y_BSD = builder.op("Transpose", y_BDS, name=prefix, perm=[0, 2, 1])
    return builder.describe(y_BSD, *TOKENS_SHAPE, channels)
