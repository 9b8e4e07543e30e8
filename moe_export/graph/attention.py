"""Grouped-query attention with rotary embedding, in ONNX Runtime's fused operator.

Legend: P positions, F rotary frequencies (half of the entries of a head that are rotated).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from moe_export.families.states import layer_states
from moe_export.graph.builder import ORT_DOMAIN, TOKENS_SHAPE, GraphBuilder
from moe_export.graph.norm import rms_norm
from moe_export.graph.rotary import RotaryTable


@dataclass(frozen=True)
class AttentionInputs:
    """Inputs of the attention operator that are the same in every layer.

    Attributes:
        last_position: Position of the last real token, [batch] int32.
        total_length: Number of past and new tokens, padding included, scalar int32.
        cos: Cosines of the rotary angles, [P, F] in the model's dtype.
        sin: Sines of the rotary angles, [P, F] in the model's dtype.
    """

    last_position: ir.Value
    total_length: ir.Value
    cos: ir.Value
    sin: ir.Value


def attention_inputs(builder: GraphBuilder, attention_mask: ir.Value) -> AttentionInputs:
    """Computes the lengths from the mask [batch, total] and adds the rotary tables.

    The padding of a row is behind its real tokens; see `graph.padding`.
    """
    int32 = ir.DataType.INT32.value
    real = builder.op("ReduceSum", attention_mask, builder.ints(1), name="mask.tokens", keepdims=0)
    last = builder.op("Sub", real, builder.ints(1), name="mask.last")
    length = builder.op("Shape", attention_mask, name="mask.length", start=1, end=2)
    length = builder.op("Squeeze", length, name="mask.length_scalar")
    return AttentionInputs(
        last_position=builder.op("Cast", last, name="mask.last_position", to=int32),
        total_length=builder.op("Cast", length, name="mask.total_length", to=int32),
        cos=builder.initializer(RotaryTable("rotary.cos", builder.dtype, builder.spec, np.cos)),
        sin=builder.initializer(RotaryTable("rotary.sin", builder.dtype, builder.spec, np.sin)),
    )


def attention(builder: GraphBuilder, x: ir.Value, shared: AttentionInputs, layer: int) -> ir.Value:
    """Attention block of a layer; its key and value caches become inputs and outputs of the graph.

    Args:
        builder: Graph that the nodes are added to.
        x: Normalized hidden states, [batch, sequence, hidden].
        shared: Result of `attention_inputs`.
        layer: Number of the layer.

    Returns:
        Output [batch, sequence, hidden], before the residual stream is added.
    """
    spec, prefix = builder.spec, f"layers.{layer}.attention"
    name = f"{prefix}.qkv"
    qkv = builder.linear(x, "q", "k", "v", name=name, layer=layer, biased=spec.qkv_bias)
    inputs: list[ir.Value | None] = [qkv, None, None]  # the first holds query, key and value
    gate = None
    if spec.has_qk_norm or spec.family.gates_attention:
        query, key, value = _parts(builder, qkv, layer)
        if spec.family.gates_attention:
            query, gate = _query_and_gate(builder, query, layer)
        inputs = [query, key, value]
        if spec.has_qk_norm:
            inputs = [*_normalized(builder, query, key, layer), value]
    if spec.clip_qkv is not None:
        inputs = [v and _clipped(builder, v, spec.clip_qkv) for v in inputs]
    mixed = grouped_query_attention(builder, inputs, shared, layer)
    if gate is not None:
        share = builder.op("Sigmoid", gate, name=f"{prefix}.share")
        mixed = builder.op("Mul", mixed, share, name=f"{prefix}.gated")
    return builder.linear(mixed, "o", name=f"{prefix}.out", layer=layer, biased=spec.o_bias)


def grouped_query_attention(
    builder: GraphBuilder, inputs: Sequence[ir.Value | None], shared: AttentionInputs, layer: int
) -> ir.Value:
    """Fused operator that rotates queries and keys if the layer does, extends caches and attends.

    Args:
        builder: Graph that the nodes are added to.
        inputs: Query, key and value, each [batch, sequence, heads * head_dim]; or one value that
            holds all three side by side, then None twice.
        shared: Result of `attention_inputs`.
        layer: Number of the layer.

    Returns:
        Output of all heads, [batch, sequence, heads * head_dim].
    """
    spec = builder.spec
    window = spec.windows[layer]
    within: dict[str, Any] = {"local_window_size": window} if window else {}
    states = layer_states(spec, layer)
    past = [
        builder.input(
            state.past, builder.float_type, ("batch_size", *state.shape("past_sequence_length"))
        )
        for state in states
    ]
    mixed, *present = builder.ops(
        "GroupQueryAttention",
        *inputs,
        *past,
        shared.last_position,
        shared.total_length,
        *((shared.cos, shared.sin) if spec.rotates[layer] else ()),
        name=f"layers.{layer}.attention.heads",
        num_outputs=3,
        domain=ORT_DOMAIN,
        num_heads=spec.num_heads,
        kv_num_heads=spec.num_kv_heads,
        scale=spec.attention_scale,
        do_rotary=int(spec.rotates[layer]),
        **within,
    )
    for value, state in zip(present, states, strict=True):
        shape = ("batch_size", *state.shape("total_sequence_length"))
        builder.output(value, state.present, shape)
    return builder.describe(mixed, *TOKENS_SHAPE, spec.num_heads * spec.head_dim)


def _parts(builder: GraphBuilder, qkv: ir.Value, layer: int) -> Sequence[ir.Value]:
    """Splits `qkv` into queries, with their gates if they have some, keys and values."""
    queries = "gated_q" if builder.spec.family.gates_attention else "q"
    sizes = builder.ints(*(builder.spec.size(symbol) for symbol in (queries, "kv", "kv")))
    name = f"layers.{layer}.attention.q"
    return builder.ops("Split", qkv, sizes, name=name, num_outputs=3, axis=-1)


def _query_and_gate(builder: GraphBuilder, both: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """Queries and gates [batch, sequence, heads * head_dim]; each head has both side by side."""
    name, size = f"layers.{layer}.attention.q", builder.spec.head_dim
    heads = builder.op("Reshape", both, builder.ints(0, 0, -1, 2 * size), name=f"{name}.both_heads")
    parts = builder.ops(
        "Split", heads, builder.ints(size, size), name=f"{name}.both", num_outputs=2, axis=-1
    )
    query, gate = (
        builder.op("Reshape", part, builder.ints(0, 0, -1), name=f"{name}.{word}")
        for part, word in zip(parts, ("query", "gate"), strict=True)
    )
    return query, gate


def _normalized(
    builder: GraphBuilder, query: ir.Value, key: ir.Value, layer: int
) -> list[ir.Value]:
    """Queries and keys, normalized per head or over all heads."""
    spec, prefix = builder.spec, f"layers.{layer}.attention"
    normalized = []
    for part, role in zip((query, key), ("q_norm", "k_norm"), strict=True):
        name = f"{prefix}.{role}"
        if spec.family.qk_norm == "head":
            heads = builder.ints(0, 0, -1, spec.head_dim)
            part = builder.op("Reshape", part, heads, name=f"{name}.heads")
            part = rms_norm(builder, part, role, name=f"{name}.normed", layer=layer)
            part = builder.op("Reshape", part, builder.ints(0, 0, -1), name=name)
        else:
            part = rms_norm(builder, part, role, name=name, layer=layer)
        normalized.append(part)
    return normalized


def _clipped(builder: GraphBuilder, x: ir.Value, magnitude: float) -> ir.Value:
    least, most = (
        builder.constant(f"clip.{name}", np.array(value, dtype=builder.dtype))
        for name, value in (("least", -magnitude), ("most", magnitude))
    )
    return builder.op("Clip", x, least, most, name=f"{x.name}.clipped")
