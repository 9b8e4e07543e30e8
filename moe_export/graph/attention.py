"""Grouped-query attention with rotary embedding, in ONNX Runtime's fused operator.

Legend: P positions, F rotary frequencies (half of head_dim).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.graph.builder import ORT_DOMAIN, GraphBuilder


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention of every layer shares.

    Attributes:
        last_position: [batch] int32, number of real tokens minus one; padding is on the right.
        total_length: scalar int32, past and new tokens, padding included.
        cos: [P, F] in the model's dtype.
        sin: [P, F].
    """

    last_position: ir.Value
    total_length: ir.Value
    cos: ir.Value
    sin: ir.Value


def attention_inputs(builder: GraphBuilder, attention_mask: ir.Value) -> AttentionInputs:
    """Reads lengths off the mask [batch, total] and lays down the rotary tables."""
    int32 = ir.DataType.INT32.value
    real = builder.op("ReduceSum", attention_mask, builder.ints(1), name="mask.tokens", keepdims=0)
    last = builder.op("Sub", real, builder.ints(1), name="mask.last")
    length = builder.op("Shape", attention_mask, name="mask.length", start=1, end=2)
    length = builder.op("Squeeze", length, name="mask.length_scalar")
    cos_PF, sin_PF = rotary_tables(builder.spec)
    return AttentionInputs(
        last_position=builder.op("Cast", last, name="mask.last_position", to=int32),
        total_length=builder.op("Cast", length, name="mask.total_length", to=int32),
        cos=builder.constant("rotary.cos", cos_PF.astype(builder.dtype)),
        sin=builder.constant("rotary.sin", sin_PF.astype(builder.dtype)),
    )


def rotary_tables(spec: ModelSpec) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of position times frequency, two arrays [P, F].

    Frequencies and angles are rounded to float32 where transformers does so, since a trained model
    has seen those angles; only the cosine and sine of them are exact.
    """
    exponent_F = np.arange(0, spec.head_dim, 2, dtype=np.float32) / np.float32(spec.head_dim)
    period_F = np.power(spec.rope_theta, exponent_F, dtype=np.float64).astype(np.float32)
    position_P = np.arange(spec.max_positions, dtype=np.float32)
    angle_PF = np.outer(position_P, np.float32(1) / period_F).astype(np.float64)
    return np.cos(angle_PF), np.sin(angle_PF)


def attention(builder: GraphBuilder, x: ir.Value, shared: AttentionInputs, layer: int) -> ir.Value:
    """The attention block of a layer; its key and value caches become inputs and outputs.

    Args:
        builder: the graph.
        x: [batch, sequence, hidden], normalized.
        shared: what `attention_inputs` gave.
        layer: number of the layer.

    Returns:
        [batch, sequence, hidden], not yet added to the residual stream.
    """
    spec, prefix = builder.spec, f"layers.{layer}.attention"
    qkv = builder.linear(x, "q", "k", "v", name=f"{prefix}.qkv_product", layer=layer)
    if spec.qkv_bias:
        bias = builder.weight("q_bias", "k_bias", "v_bias", layer=layer)
        qkv = builder.op("Add", qkv, bias, name=f"{prefix}.qkv")
    past_shape = ("batch_size", spec.num_kv_heads, "past_sequence_length", spec.head_dim)
    past = [
        builder.input(f"past_key_values.{layer}.{kind}", builder.float_type, past_shape)
        for kind in ("key", "value")
    ]
    mixed, *present = builder.ops(
        "GroupQueryAttention",
        qkv,
        None,  # key and value are packed behind the query
        None,
        *past,
        shared.last_position,
        shared.total_length,
        shared.cos,
        shared.sin,
        name=f"{prefix}.heads",
        num_outputs=3,
        domain=ORT_DOMAIN,
        num_heads=spec.num_heads,
        kv_num_heads=spec.num_kv_heads,
        scale=spec.head_dim**-0.5,
        do_rotary=1,
        rotary_interleaved=0,
    )
    present_shape = ("batch_size", spec.num_kv_heads, "total_sequence_length", spec.head_dim)
    for value, kind in zip(present, ("key", "value"), strict=True):
        builder.output(value, f"present.{layer}.{kind}", present_shape)
    return builder.linear(mixed, "o", name=f"{prefix}.out", layer=layer)
