"""Gated delta net: attention with a matrix of fixed size per head as its memory (Qwen3-Next).

For each value head, with keys k, values v, queries q, decay exp(g) and rate b,
    S = exp(g) S + b (v - exp(g) S k) kᵀ    and    y = S q.
ONNX Runtime 1.32 has it as one operator. Padding behind the real tokens of a row gets the decay 1
and the rate 0, which leave the memory as it is.
Source: https://arxiv.org/abs/2412.06464.

Legend: B batch, S new tokens, H heads, N entries of a key, V entries of a value.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.families.features import DeltaNet
from moe_export.families.states import layer_states
from moe_export.graph.builder import ORT_DOMAIN, TOKENS_SHAPE, GraphBuilder
from moe_export.graph.norm import rms_norm
from moe_export.graph.short_convolution import stateful_convolution

KEY_EPSILON = 1e-6
"""Number added to the squared length of queries and keys before they are divided by their length.
The operator's own normalization has another one."""

NEVER = -1e4
"""Logit of padding: its sigmoid and softplus are 0, in float16 too."""


def delta_net(
    builder: GraphBuilder, x: ir.Value, new_tokens: ir.Value, is_real: ir.Value, layer: int
) -> ir.Value:
    """Gated delta net of a layer.

    Args:
        builder: Graph that the nodes are added to.
        x: Normalized hidden states, [batch, sequence, hidden].
        new_tokens: Number of real new tokens of each row, [batch, 1] int64.
        is_real: True for the real tokens, [batch, sequence, 1].
        layer: Number of the layer.

    Returns:
        Output [batch, sequence, hidden], before the residual stream is added.
    """
    spec, prefix = builder.spec, f"layers.{layer}.delta_net"
    sizes = spec.delta_net
    assert sizes is not None
    mixed, gate = _projected(builder, x, sizes, layer)
    mixed = stateful_convolution(
        builder, mixed, "delta_conv", new_tokens, layer, sizes.channels, sizes.taps
    )
    mixed = _silu(builder, mixed, f"{prefix}.mixed")
    query, key, value = _heads(builder, mixed, sizes, prefix)
    rate, decay = _rate_and_decay(builder, x, sizes, is_real, layer)
    memory = next(s for s in layer_states(spec, layer) if s.past.endswith("recurrent_state"))
    shape = ("batch_size", *memory.shape(0))
    past = builder.input(memory.past, ir.DataType.FLOAT, shape)
    y, present = builder.ops(
        "GatedDeltaNet",
        query,
        key,
        value,
        None,
        decay,
        rate,
        past,
        builder.weight("delta_log_rate", layer=layer, dtype="float32"),
        builder.weight("delta_bias", layer=layer, dtype="float32"),
        name=f"{prefix}.heads",
        num_outputs=2,
        domain=ORT_DOMAIN,
        gate_activation="softplus",
        beta_activation="sigmoid",
    )
    builder.describe(y, *TOKENS_SHAPE, sizes.value_heads, sizes.value_dim)
    builder.output(present, memory.present, shape, dtype=ir.DataType.FLOAT)
    y = rms_norm(builder, y, "delta_norm", name=f"{prefix}.normed", layer=layer)
    y = builder.op("Mul", y, _silu(builder, gate, f"{prefix}.gate"), name=f"{prefix}.gated")
    y = builder.op("Reshape", y, builder.ints(0, 0, -1), name=prefix)
    return builder.linear(y, "delta_out", name=f"{prefix}.out", layer=layer)


def _projected(
    builder: GraphBuilder, x: ir.Value, sizes: DeltaNet, layer: int
) -> tuple[ir.Value, ir.Value]:
    """Queries, keys and values side by side [B, S, channels], and the gate [B, S, H, V]."""
    prefix = f"layers.{layer}.delta_net"
    if not sizes.is_grouped:
        product = builder.linear(x, "delta_qkv", "delta_z", name=f"{prefix}.in", layer=layer)
        halves = builder.ints(sizes.channels, sizes.value_heads * sizes.value_dim)
        mixed, gate = builder.ops(
            "Split", product, halves, name=f"{prefix}.qkv", num_outputs=2, axis=-1
        )
        shape = builder.ints(0, 0, -1, sizes.value_dim)
        return mixed, builder.op("Reshape", gate, shape, name=f"{prefix}.z")
    product = builder.linear(x, "delta_in", name=f"{prefix}.in", layer=layer)
    values = sizes.value_heads // sizes.key_heads * sizes.value_dim
    groups = builder.ints(0, 0, sizes.key_heads, -1)
    product = builder.op("Reshape", product, groups, name=f"{prefix}.groups")
    parts = builder.ops(
        "Split",
        product,
        builder.ints(sizes.key_dim, sizes.key_dim, values, values),
        name=f"{prefix}.parts",
        num_outputs=4,
        axis=-1,
    )
    flat = [
        builder.op("Reshape", part, builder.ints(0, 0, -1), name=f"{prefix}.{word}")
        for part, word in zip(parts[:3], ("q", "k", "v"), strict=True)
    ]
    gate = builder.op(
        "Reshape", parts[3], builder.ints(0, 0, -1, sizes.value_dim), name=f"{prefix}.z"
    )
    return builder.op("Concat", *flat, name=f"{prefix}.qkv", axis=-1), gate


def _heads(
    builder: GraphBuilder, mixed: ir.Value, sizes: DeltaNet, prefix: str
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries and keys [B, S, H, N] of length 1, and values [B, S, H, V]."""
    keys = sizes.key_heads * sizes.key_dim
    both, value = builder.ops(
        "Split",
        mixed,
        builder.ints(2 * keys, sizes.value_heads * sizes.value_dim),
        name=f"{prefix}.both",
        num_outputs=2,
        axis=-1,
    )
    both = builder.op(
        "Reshape", both, builder.ints(0, 0, -1, sizes.key_dim), name=f"{prefix}.both_heads"
    )
    both = _normalized(builder, both, f"{prefix}.both_normed")
    halves = builder.ints(sizes.key_heads, sizes.key_heads)
    query, key = builder.ops("Split", both, halves, name=f"{prefix}.query", num_outputs=2, axis=2)
    value = builder.op(
        "Reshape", value, builder.ints(0, 0, -1, sizes.value_dim), name=f"{prefix}.value"
    )
    return query, key, value


def _normalized(builder: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    """Divides x by its length along the last axis, computed in float32."""
    narrow = builder.dtype != "float32"
    if narrow:
        x = builder.op("Cast", x, name=f"{name}.wide", to=ir.DataType.FLOAT.value)
    square = builder.op("ReduceSumSquare", x, builder.ints(-1), name=f"{name}.square", keepdims=1)
    least = builder.constant("key_epsilon", np.array(KEY_EPSILON, np.float32))
    square = builder.op("Add", square, least, name=f"{name}.sum")
    length = builder.op("Sqrt", square, name=f"{name}.length")
    x = builder.op("Div", x, length, name=f"{name}.unit")
    return builder.op("Cast", x, name=name, to=builder.float_type.value) if narrow else x


def _rate_and_decay(
    builder: GraphBuilder, x: ir.Value, sizes: DeltaNet, is_real: ir.Value, layer: int
) -> tuple[ir.Value, ir.Value]:
    """Logits of the rate and of the decay, [B, S, H] each; those of padding are `NEVER`."""
    prefix = f"layers.{layer}.delta_net"
    shared = sizes.value_heads
    if sizes.is_grouped:
        product = builder.linear(x, "delta_gates", name=f"{prefix}.gates", layer=layer)
        groups = builder.ints(0, 0, sizes.key_heads, -1)
        product = builder.op("Reshape", product, groups, name=f"{prefix}.gates_groups")
        shared //= sizes.key_heads
    else:
        roles = ("delta_rate", "delta_decay")
        product = builder.linear(x, *roles, name=f"{prefix}.gates", layer=layer)
    parts = builder.ops(
        "Split",
        product,
        builder.ints(shared, shared),
        name=f"{prefix}.gates_parts",
        num_outputs=2,
        axis=-1,
    )
    never = builder.constant("never_updated", np.array(NEVER, builder.dtype))
    rate, decay = (
        builder.op(
            "Where",
            is_real,
            builder.op("Reshape", part, builder.ints(0, 0, -1), name=f"{prefix}.{word}_logit"),
            never,
            name=f"{prefix}.{word}",
        )
        for part, word in zip(parts, ("rate", "decay"), strict=True)
    )
    return rate, decay


def _silu(builder: GraphBuilder, x: ir.Value, name: str) -> ir.Value:
    sigmoid = builder.op("Sigmoid", x, name=f"{name}.sigmoid")
    return builder.op("Mul", x, sigmoid, name=f"{name}.silu")
