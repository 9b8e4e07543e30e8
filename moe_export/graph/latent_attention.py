"""DeepSeek's latent attention (MLA), exported as attention with as many key as query heads.

Keys and values are expanded from the latent vector before they are cached. The cache then holds
full heads, which takes more memory than latent vectors but works in every runtime. The fused
operator rotates the first entries of a head and needs values as long as keys. So heads are laid out
[rope | nope], and values are padded with zeros that are removed afterwards.
"""

from __future__ import annotations

import onnx_ir as ir

from moe_export.families.features import LatentAttention
from moe_export.graph.attention import AttentionInputs, grouped_query_attention
from moe_export.graph.builder import GraphBuilder
from moe_export.graph.norm import rms_norm

LATENT_EPSILON = 1e-6
"""Epsilon of the norms of latent vectors; transformers ignores the config's epsilon there."""


def latent_attention(
    builder: GraphBuilder, x: ir.Value, shared: AttentionInputs, layer: int
) -> ir.Value:
    """Latent attention block of a layer; see `graph.attention.attention` for the arguments."""
    spec, prefix = builder.spec, f"layers.{layer}.attention"
    latent = spec.latent
    assert latent is not None
    query = _queries(builder, x, latent, layer)
    key, value = _keys_and_values(builder, x, latent, layer)
    mixed = grouped_query_attention(builder, (query, key, value), shared, layer)
    mixed = _heads(builder, mixed, spec.head_dim, f"{prefix}.mixed_heads")
    filled = spec.head_dim - latent.value_dim
    if filled:
        mixed = _split(builder, mixed, (latent.value_dim, filled), f"{prefix}.values_only")[0]
    mixed = builder.op("Reshape", mixed, builder.ints(0, 0, -1), name=f"{prefix}.mixed")
    return builder.linear(mixed, "o", name=f"{prefix}.out", layer=layer)


def _queries(builder: GraphBuilder, x: ir.Value, latent: LatentAttention, layer: int) -> ir.Value:
    prefix = f"layers.{layer}.attention.q"
    if latent.query_rank:
        x = builder.linear(x, "q_latent", name=f"{prefix}.latent", layer=layer)
        name = f"{prefix}.latent_normed"
        x = rms_norm(builder, x, "q_latent_norm", name=name, layer=layer, epsilon=LATENT_EPSILON)
        query = builder.linear(x, "q_expand", name=f"{prefix}.product", layer=layer)
    else:
        query = builder.linear(x, "q", name=f"{prefix}.product", layer=layer)
    heads = _heads(builder, query, latent.nope_dim + latent.rope_dim, f"{prefix}.heads")
    nope, rope = _split(builder, heads, (latent.nope_dim, latent.rope_dim), f"{prefix}.parts")
    return _joined(builder, rope, nope, prefix)


def _keys_and_values(
    builder: GraphBuilder, x: ir.Value, latent: LatentAttention, layer: int
) -> tuple[ir.Value, ir.Value]:
    spec, prefix = builder.spec, f"layers.{layer}.attention"
    compressed = builder.linear(x, "kv_latent", name=f"{prefix}.kv.latent", layer=layer)
    sizes = (latent.key_rank, latent.rope_dim)
    vector, rope = _split(builder, compressed, sizes, f"{prefix}.kv.parts")
    name = f"{prefix}.kv.latent_normed"
    vector = rms_norm(
        builder, vector, "kv_latent_norm", name=name, layer=layer, epsilon=LATENT_EPSILON
    )
    expanded = builder.linear(vector, "kv_expand", name=f"{prefix}.kv.product", layer=layer)
    expanded = _heads(builder, expanded, latent.nope_dim + latent.value_dim, f"{prefix}.kv.heads")
    sizes = (latent.nope_dim, latent.value_dim)
    nope, value = _split(builder, expanded, sizes, f"{prefix}.kv.split")
    rope = builder.op("Unsqueeze", rope, builder.ints(2), name=f"{prefix}.k.rope")
    times = builder.ints(1, 1, spec.num_heads, 1)
    rope = builder.op("Tile", rope, times, name=f"{prefix}.k.rope_heads")
    filled = spec.head_dim - latent.value_dim
    if filled:
        pads = builder.ints(0, 0, 0, 0, 0, 0, 0, filled)
        value = builder.op("Pad", value, pads, name=f"{prefix}.v.heads")
    value = builder.op("Reshape", value, builder.ints(0, 0, -1), name=f"{prefix}.v")
    return _joined(builder, rope, nope, f"{prefix}.k"), value


def _heads(builder: GraphBuilder, x: ir.Value, head_dim: int, name: str) -> ir.Value:
    """Reshapes [batch, sequence, heads * head_dim] to [batch, sequence, heads, head_dim]."""
    return builder.op("Reshape", x, builder.ints(0, 0, -1, head_dim), name=name)


def _split(
    builder: GraphBuilder, x: ir.Value, sizes: tuple[int, int], name: str
) -> tuple[ir.Value, ir.Value]:
    """Splits the last axis into two parts of the given sizes."""
    first, second = builder.ops("Split", x, builder.ints(*sizes), name=name, num_outputs=2, axis=-1)
    return first, second


def _joined(builder: GraphBuilder, rope: ir.Value, nope: ir.Value, name: str) -> ir.Value:
    """Concatenates each head as [rope | nope] and flattens the heads."""
    heads = builder.op("Concat", rope, nope, name=f"{name}.rope_first", axis=-1)
    return builder.op("Reshape", heads, builder.ints(0, 0, -1), name=name)
