"""The MoE block: router, routed experts as one `RaggedMoE` node, shared expert."""

from __future__ import annotations

import onnx_ir as ir

from moe_export.graph.builder import GraphBuilder
from moe_export.op import spec as op_spec


def moe(builder: GraphBuilder, x: ir.Value, layer: int) -> ir.Value:
    """The MoE block of a layer, [batch, sequence, hidden] to the same.

    The result is not yet added to the residual stream.
    """
    spec, prefix = builder.spec, f"layers.{layer}.moe"
    tokens = builder.op("Reshape", x, builder.ints(-1, spec.hidden_size), name=f"{prefix}.tokens")
    weights, indices = router(builder, tokens, layer)
    y = routed_experts(builder, tokens, indices, weights, layer)
    if spec.has_shared_expert:
        y = builder.op("Add", y, shared_expert(builder, tokens, layer), name=f"{prefix}.sum")
    shape = builder.op("Shape", x, name=f"{prefix}.shape")
    return builder.op("Reshape", y, shape, name=prefix)


def router(builder: GraphBuilder, tokens: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """Weights and numbers of the chosen experts, both [T, K].

    The softmax is over all experts and in float32, as in transformers.
    """
    spec, prefix = builder.spec, f"layers.{layer}.router"
    narrow = builder.dtype != "float32"
    scores = builder.linear(tokens, "router", name=f"{prefix}.logits", layer=layer)
    if narrow:
        scores = builder.op("Cast", scores, name=f"{prefix}.widened", to=ir.DataType.FLOAT.value)
    scores = builder.op("Softmax", scores, name=f"{prefix}.softmax", axis=-1)
    weights, indices = builder.ops(
        "TopK", scores, builder.ints(spec.top_k), name=f"{prefix}.top_k", num_outputs=2, axis=-1
    )
    if spec.normalize_top_k:
        total = builder.op(
            "ReduceSum", weights, builder.ints(-1), name=f"{prefix}.total", keepdims=1
        )
        weights = builder.op("Div", weights, total, name=f"{prefix}.normalized")
    if narrow:
        weights = builder.op("Cast", weights, name=f"{prefix}.weights", to=builder.float_type.value)
    return weights, indices


def routed_experts(
    builder: GraphBuilder, tokens: ir.Value, indices: ir.Value, weights: ir.Value, layer: int
) -> ir.Value:
    """The `RaggedMoE` node, [T, D] to [T, D]."""
    experts = [
        builder.weight(role, layer=layer, expert=expert, transpose=True)
        for expert in range(builder.spec.num_experts)
        for role in op_spec.EXPERT_INPUTS
    ]
    return builder.op(
        op_spec.NAME,
        tokens,
        indices,
        weights,
        *experts,
        name=f"layers.{layer}.experts",
        domain=op_spec.DOMAIN,
        num_experts=builder.spec.num_experts,
        activation="swiglu",
        format=builder.dtype,
    )


def shared_expert(builder: GraphBuilder, tokens: ir.Value, layer: int) -> ir.Value:
    """The expert that every token takes, weighted by a sigmoid gate of its own."""
    prefix = f"layers.{layer}.shared_expert"
    gate = builder.linear(tokens, "shared_gate", name=f"{prefix}.gate", layer=layer)
    up = builder.linear(tokens, "shared_up", name=f"{prefix}.up", layer=layer)
    hidden = builder.op("Mul", builder.silu(gate, f"{prefix}.silu"), up, name=f"{prefix}.hidden")
    out = builder.linear(hidden, "shared_down", name=f"{prefix}.out", layer=layer)
    logit = builder.linear(tokens, "shared_router", name=f"{prefix}.router", layer=layer)
    share = builder.op("Sigmoid", logit, name=f"{prefix}.share")
    return builder.op("Mul", out, share, name=f"{prefix}.weighted")
