"""DeepSeek's latent attention (MLA), whose cache holds one vector per token for all heads.

The vector is [rotated key | latent vector]. For few new tokens, such as one of decoding, the
matrices that expand latent vectors are multiplied with the queries and with the mixed vectors
("absorbed"). For many, keys and values of all tokens are expanded first, which takes fewer products
in all. Source: https://arxiv.org/abs/2405.04434, section 2.1.

ONNX Runtime's grouped-query attention writes the new vectors into the cache, in place where past
and present share memory. It knows caches of equally long keys and values, so the
first half of the vector is cached as key and the second as value, as of one head; its own output is
not used. Every application that has a cache of keys and values can hold this one.

Legend: B batch, S new tokens, T past and new tokens, H heads, P rotated entries, N entries of a key
that are not rotated, V entries of a value, R entries of the latent vector, C half of P + R.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from moe_export.families.base import ModelSpec
from moe_export.families.features import LatentAttention
from moe_export.families.states import layer_states
from moe_export.graph.attention import AttentionInputs
from moe_export.graph.builder import ORT_DOMAIN, TOKENS_SHAPE, GraphBuilder
from moe_export.graph.norm import rms_norm
from moe_export.graph.padding import FrontOrder, new_tokens

LATENT_EPSILON = 1e-6
"""Epsilon of the norms of latent vectors; transformers ignores the config's epsilon there."""

HIDDEN_SCORE = {"float32": -1e9, "float16": -6e4}
"""Number added to the score of a later token: its share is 0."""


PARTS: tuple[Literal["key"], Literal["value"]] = ("key", "value")
"""Parts of the matrix that expands latent vectors, and names of the states."""

ALL_LENGTH = "total_sequence_length"
"""Name of the axis of past and new tokens."""


@dataclass(frozen=True)
class LatentInputs:
    """Inputs of latent attention that are the same in every layer.

    Attributes:
        position_BS: Positions of the new tokens, int64.
        hidden_B1ST: 0 for the tokens that a token attends to, a very negative number for others.
        end: Number of past and new tokens, padding included, [1] int64.
        are_many: True, as [1] bool, if there are so many new tokens that expanding pays.
    """

    position_BS: ir.Value
    hidden_B1ST: ir.Value
    end: ir.Value
    are_many: ir.Value


def latent_inputs(builder: GraphBuilder, mask_BT: ir.Value, order: FrontOrder) -> LatentInputs:
    """Computes positions and what each token attends to from the mask.

    Args:
        builder: Graph that the nodes are added to.
        mask_BT: Attention mask, int64.
        order: Places of the new tokens, real ones first.
    """
    zero, one = (builder.constant(f"scalar_{n}", np.array(n, np.int64)) for n in (0, 1))
    real_B1 = builder.op(
        "ReduceSum", mask_BT, builder.ints(1), name="latent.real_tokens", keepdims=1
    )
    past_B1 = builder.op("Sub", real_B1, new_tokens(builder, order), name="latent.past")
    length = builder.op("Squeeze", order.length, name="latent.length")
    place_S = builder.op("Range", zero, length, one, name="latent.places")
    position_BS = builder.op("Add", past_B1, place_S, name="latent.positions")
    builder.describe(position_BS, *TOKENS_SHAPE, dtype=ir.DataType.INT64)
    end = builder.op("Shape", mask_BT, name="latent.end", start=1, end=2)
    total = builder.op("Squeeze", end, name="latent.total")
    place_T = builder.op("Range", zero, total, one, name="latent.key_places")
    own_BS1 = builder.op("Unsqueeze", position_BS, builder.ints(2), name="latent.own_place")
    is_later = builder.op("Greater", place_T, own_BS1, name="latent.is_later")
    seen, hidden = (
        builder.constant(f"latent.{name}", np.array(value, builder.dtype))
        for name, value in (("seen_score", 0), ("hidden_score", HIDDEN_SCORE[builder.dtype]))
    )
    hidden_BST = builder.op("Where", is_later, hidden, seen, name="latent.hidden_rows")
    hidden_B1ST = builder.op("Unsqueeze", hidden_BST, builder.ints(1), name="latent.hidden")
    most = builder.ints(most_absorbed(builder.spec))
    are_many = builder.op("Greater", order.length, most, name="latent.are_many")
    return LatentInputs(position_BS, hidden_B1ST, end, are_many)


def most_absorbed(spec: ModelSpec) -> int:
    """Largest number of new tokens for which absorbing takes at most the products of expanding.

    For each past token and head, expanding takes R (N + V) products, then P + N + V for each new
    token, and absorbing 2 (P + R) for each new token.
    """
    latent = spec.latent
    assert latent is not None
    expanding = latent.key_rank * (latent.nope_dim + latent.value_dim)
    each = latent.rope_dim + latent.nope_dim + latent.value_dim
    saved = 2 * latent.cached_dim - each
    return expanding // saved if saved > 0 else np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Operands:
    """Operands of a layer's attention.

    Attributes:
        nope_BHSN: Entries of the queries that are not rotated.
        rope_BHSP: Rotated entries of the queries.
        keys_B1TC: First halves of the vectors of all tokens.
        values_B1TC: Second halves of the vectors of all tokens.
        key_HNR: Part of the expanding matrix that gives keys, float32.
        value_HRV: Part of the expanding matrix that gives values, float32.
    """

    nope_BHSN: ir.Value
    rope_BHSP: ir.Value
    keys_B1TC: ir.Value
    values_B1TC: ir.Value
    key_HNR: ir.Value
    value_HRV: ir.Value


def latent_attention(
    builder: GraphBuilder, x: ir.Value, shared: AttentionInputs, own: LatentInputs, layer: int
) -> ir.Value:
    """Latent attention block of a layer; its caches become inputs and outputs of the graph.

    Args:
        builder: Graph that the nodes are added to.
        x: Normalized hidden states, [batch, sequence, hidden].
        shared: Result of `attention_inputs`.
        own: Result of `latent_inputs`.
        layer: Number of the layer.

    Returns:
        Output [batch, sequence, hidden], before the residual stream is added.
    """
    spec, prefix = builder.spec, f"layers.{layer}.attention"
    latent = spec.latent
    assert latent is not None
    queries = _queries(builder, x, shared, own, latent, layer)
    vectors = _vectors(builder, x, shared, own, latent, layer)
    halves = _cached(builder, vectors, shared, own, latent, layer)
    weights = (_wide(builder, builder.latent_weight(part, layer)) for part in PARTS)
    operands = _Operands(*queries, *halves, *weights)

    def expanded() -> ir.Value:
        return _expanded(builder, operands, own, latent, layer)

    def absorbed() -> ir.Value:
        return _absorbed(builder, operands, own, latent, layer)

    mixed = builder.either(own.are_many, expanded, absorbed, f"{prefix}.mixed")
    builder.describe(mixed, *TOKENS_SHAPE, spec.num_heads * latent.value_dim)
    return builder.linear(mixed, "o", name=f"{prefix}.out", layer=layer)


def _queries(
    builder: GraphBuilder,
    x: ir.Value,
    shared: AttentionInputs,
    own: LatentInputs,
    latent: LatentAttention,
    layer: int,
) -> tuple[ir.Value, ir.Value]:
    """Entries of queries that are not rotated [B, H, S, N], and the rotated ones [B, H, S, P]."""
    prefix = f"layers.{layer}.attention.q"
    if latent.query_rank:
        x = builder.linear(x, "q_latent", name=f"{prefix}.latent", layer=layer)
        name = f"{prefix}.latent_normed"
        x = rms_norm(builder, x, "q_latent_norm", name=name, layer=layer, epsilon=LATENT_EPSILON)
        query = builder.linear(x, "q_expand", name=f"{prefix}.product", layer=layer)
    else:
        query = builder.linear(x, "q", name=f"{prefix}.product", layer=layer)
    size = latent.nope_dim + latent.rope_dim
    heads = builder.op("Reshape", query, builder.ints(0, 0, -1, size), name=f"{prefix}.rows")
    heads = builder.op("Transpose", heads, name=f"{prefix}.heads", perm=[0, 2, 1, 3])
    nope, rope = _split(builder, heads, (latent.nope_dim, latent.rope_dim), f"{prefix}.parts")
    rotated = _rotated(builder, rope, shared, own, f"{prefix}.rotated")
    shape = ("batch_size", builder.spec.num_heads, TOKENS_SHAPE[1], latent.rope_dim)
    return nope, builder.describe(rotated, *shape)


def _rotated(
    builder: GraphBuilder, x: ir.Value, shared: AttentionInputs, own: LatentInputs, name: str
) -> ir.Value:
    """Rotates x, [B, H, S, P] or [B, S, P], to the positions of the new tokens."""
    return builder.op(
        "RotaryEmbedding",
        x,
        own.position_BS,
        shared.cos,
        shared.sin,
        name=name,
        domain=ORT_DOMAIN,
        interleaved=1,
    )


def _vectors(
    builder: GraphBuilder,
    x: ir.Value,
    shared: AttentionInputs,
    own: LatentInputs,
    latent: LatentAttention,
    layer: int,
) -> ir.Value:
    """New vectors of the cache, [B, S, P + R]."""
    prefix = f"layers.{layer}.attention.kv"
    product = builder.linear(x, "kv_latent", name=f"{prefix}.latent", layer=layer)
    sizes = (latent.key_rank, latent.rope_dim)
    vector, rope = _split(builder, product, sizes, f"{prefix}.parts")
    name = f"{prefix}.latent_normed"
    vector = rms_norm(
        builder, vector, "kv_latent_norm", name=name, layer=layer, epsilon=LATENT_EPSILON
    )
    rope = _rotated(builder, rope, shared, own, f"{prefix}.rotated")
    builder.describe(rope, *TOKENS_SHAPE, latent.rope_dim)
    return builder.op("Concat", rope, vector, name=f"{prefix}.vectors", axis=-1)


def _cached(
    builder: GraphBuilder,
    vectors: ir.Value,
    shared: AttentionInputs,
    own: LatentInputs,
    latent: LatentAttention,
    layer: int,
) -> list[ir.Value]:
    """Halves of the vectors of all past and new tokens, [B, 1, T, C] each.

    Whole caches, which may have room for more, become outputs of the graph.
    """
    prefix = f"layers.{layer}.attention"
    key, value = _split(builder, vectors, (latent.half_dim,) * 2, f"{prefix}.kv.halves")
    states = layer_states(builder.spec, layer)
    past = [
        builder.input(
            state.past, builder.float_type, ("batch_size", *state.shape("past_sequence_length"))
        )
        for state in states
    ]
    unused, *present = builder.ops(
        "GroupQueryAttention",
        key,
        key,
        value,
        *past,
        shared.last_position,
        shared.total_length,
        name=f"{prefix}.cache",
        num_outputs=3,
        domain=ORT_DOMAIN,
        num_heads=1,
        kv_num_heads=1,
    )
    builder.describe(unused, *TOKENS_SHAPE, latent.half_dim)
    for half, state in zip(present, states, strict=True):
        builder.output(half, state.present, ("batch_size", *state.shape("total_sequence_length")))
    start, axis = builder.ints(0), builder.ints(2)
    return [
        builder.op("Slice", half, start, own.end, axis, name=f"{prefix}.{word}")
        for half, word in zip(present, ("keys", "values"), strict=True)
    ]


def _expanded(
    builder: GraphBuilder, x: _Operands, own: LatentInputs, latent: LatentAttention, layer: int
) -> ir.Value:
    """Output of all heads [B, S, H * V], with keys and values of every token."""
    spec, prefix = builder.spec, f"layers.{layer}.attention.expanded"
    parts = (latent.rope_dim, latent.half_dim - latent.rope_dim)
    rope_B1TP, start = _split(builder, x.keys_B1TC, parts, f"{prefix}.parts")
    latent_B1TR = builder.op("Concat", start, x.values_B1TC, name=f"{prefix}.latent", axis=-1)
    latent_B1TR = _wide(builder, latent_B1TR)
    nope_BHTN = builder.op(
        "FusedMatMul",
        latent_B1TR,
        x.key_HNR,
        name=f"{prefix}.k.nope",
        domain=ORT_DOMAIN,
        transB=1,
    )
    shape = ("batch_size", spec.num_heads, ALL_LENGTH, latent.nope_dim)
    builder.describe(nope_BHTN, *shape, dtype=ir.DataType.FLOAT)
    nope_BHTN = _narrow(builder, nope_BHTN)
    heads = builder.ints(1, spec.num_heads, 1, 1)
    rope_BHTP = builder.op("Expand", rope_B1TP, heads, name=f"{prefix}.k.rope")
    key = builder.op("Concat", rope_BHTP, nope_BHTN, name=f"{prefix}.k.heads", axis=-1)
    value = builder.op("MatMul", latent_B1TR, x.value_HRV, name=f"{prefix}.v.heads")
    value = _narrow(builder, value)
    query = builder.op("Concat", x.rope_BHSP, x.nope_BHSN, name=f"{prefix}.q.heads", axis=-1)
    mixed = builder.op(
        "MultiHeadAttention",
        _beside(builder, query, f"{prefix}.q"),
        _beside(builder, key, f"{prefix}.k"),
        _beside(builder, value, f"{prefix}.v"),
        None,
        None,
        own.hidden_B1ST,
        name=f"{prefix}.mixed",
        domain=ORT_DOMAIN,
        num_heads=spec.num_heads,
        scale=spec.attention_scale,
    )
    return builder.describe(mixed, *TOKENS_SHAPE, spec.num_heads * latent.value_dim)


def _absorbed(
    builder: GraphBuilder, x: _Operands, own: LatentInputs, latent: LatentAttention, layer: int
) -> ir.Value:
    """Output of all heads [B, S, H * V], without a key or value of any token."""
    spec, prefix = builder.spec, f"layers.{layer}.attention.absorbed"
    nope = _wide(builder, x.nope_BHSN)
    absorbed = _narrow(builder, builder.op("MatMul", nope, x.key_HNR, name=f"{prefix}.q.latent"))
    both = builder.op("Concat", x.rope_BHSP, absorbed, name=f"{prefix}.q.heads", axis=-1)
    # All heads share the cache, so their queries are rows of one product.
    rows = builder.ints(0, 1, -1, latent.cached_dim)
    both = builder.op("Reshape", both, rows, name=f"{prefix}.q")
    queries = _split(builder, both, (latent.half_dim,) * 2, f"{prefix}.q.halves")
    halves = (x.keys_B1TC, x.values_B1TC)
    shares = _shares(builder, queries, halves, own, prefix)
    mixed = [
        builder.op("MatMul", shares, half, name=f"{prefix}.mixed_{word}")
        for half, word in zip(halves, ("keys", "values"), strict=True)
    ]
    both = builder.op("Concat", *mixed, name=f"{prefix}.mixed_rows", axis=-1)
    heads = builder.ints(0, spec.num_heads, -1, latent.cached_dim)
    both = builder.op("Reshape", both, heads, name=f"{prefix}.mixed_heads")
    sizes = (latent.rope_dim, latent.key_rank)
    vector_BHSR = _wide(builder, _split(builder, both, sizes, f"{prefix}.mixed_parts")[1])
    value = builder.op("MatMul", vector_BHSR, x.value_HRV, name=f"{prefix}.v")
    return _beside(builder, _narrow(builder, value), f"{prefix}.mixed")


def _shares(
    builder: GraphBuilder,
    queries: Sequence[ir.Value],
    halves: Sequence[ir.Value],
    own: LatentInputs,
    prefix: str,
) -> ir.Value:
    """Shares of all tokens in the output of each head, [B, 1, H * S, T]."""
    products = []
    for query, half, word in zip(queries, halves, PARTS, strict=True):
        product = builder.op(
            "FusedMatMul",
            query,
            half,
            name=f"{prefix}.{word}_scores",
            domain=ORT_DOMAIN,
            transB=1,
            alpha=builder.spec.attention_scale,
        )
        products.append(builder.describe(product, "batch_size", 1, "head_tokens", ALL_LENGTH))
    scores = builder.op("Add", *products, name=f"{prefix}.scores")
    heads = builder.ints(0, builder.spec.num_heads, -1, 0)
    scores = builder.op("Reshape", scores, heads, name=f"{prefix}.head_scores")
    scores = builder.op("Add", scores, own.hidden_B1ST, name=f"{prefix}.seen_scores")
    shares = builder.op("Softmax", scores, name=f"{prefix}.head_shares", axis=-1)
    return builder.op("Reshape", shares, builder.ints(0, 1, -1, 0), name=f"{prefix}.shares")


def _wide(builder: GraphBuilder, x: ir.Value) -> ir.Value:
    """Casts x to float32 in a float16 model.

    ONNX Runtime multiplies in float32 on the CPU. It casts weights when it loads, but those that
    only nodes of branches use in every run, unless they are cast outside.
    """
    if builder.dtype == "float32":
        return x
    return builder.op("Cast", x, name=f"{x.name}.wide", to=ir.DataType.FLOAT.value)


def _narrow(builder: GraphBuilder, x: ir.Value) -> ir.Value:
    """Casts x back to the model's dtype."""
    if builder.dtype == "float32":
        return x
    return builder.op("Cast", x, name=f"{x.name}.narrow", to=builder.float_type.value)


def _beside(builder: GraphBuilder, x_BHSD: ir.Value, name: str) -> ir.Value:
    """Puts the heads of a token side by side, [B, S, H * D]."""
    rows = builder.op("Transpose", x_BHSD, name=f"{name}.tokens", perm=[0, 2, 1, 3])
    return builder.op("Reshape", rows, builder.ints(0, 0, -1), name=name)


def _split(
    builder: GraphBuilder, x: ir.Value, sizes: tuple[int, int], name: str
) -> tuple[ir.Value, ir.Value]:
    """Splits the last axis into two parts of the given sizes."""
    first, second = builder.ops("Split", x, builder.ints(*sizes), name=name, num_outputs=2, axis=-1)
    return first, second
