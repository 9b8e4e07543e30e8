"""The MoE block: a router, and all experts of the layer in one `RaggedMoE` node."""

from __future__ import annotations

import onnx_ir as ir

from moe_export.graph.builder import GraphBuilder
from moe_export.op import spec as op_spec
from moe_export.quantization import Quantization, QuantizedFormat


def moe(builder: GraphBuilder, x: ir.Value, layer: int) -> ir.Value:
    """The MoE block of a layer, [batch, sequence, hidden] to the same.

    The result is not yet added to the residual stream.
    """
    spec, prefix = builder.spec, f"layers.{layer}.moe"
    tokens = builder.op("Reshape", x, builder.ints(-1, spec.hidden_size), name=f"{prefix}.tokens")
    weights, indices = router(builder, tokens, layer)
    y = experts(builder, tokens, indices, weights, layer)
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


def experts(
    builder: GraphBuilder, tokens: ir.Value, indices: ir.Value, weights: ir.Value, layer: int
) -> ir.Value:
    """The `RaggedMoE` node with all experts of the layer, [T, D] to [T, D]."""
    spec = builder.spec
    format_name = spec.quantization.format_of("gate", layer)
    groups = {} if format_name is None else {"group_size": spec.quantization.group_size}
    inputs = [
        value
        for expert in range(spec.num_experts)
        for role in op_spec.EXPERT_INPUTS
        for value in builder.expert_weight(role, layer, expert)
    ]
    if spec.has_shared_expert:
        inputs += [
            value
            for role in op_spec.EXPERT_INPUTS
            for value in builder.expert_weight(f"shared_{role}", layer)
        ]
        inputs.append(shared_weight(builder, tokens, layer))
    return builder.op(
        op_spec.NAME,
        tokens,
        indices,
        weights,
        *inputs,
        name=f"layers.{layer}.experts",
        domain=op_spec.DOMAIN,
        overload=overload_of(spec.quantization, format_name),
        num_experts=spec.num_experts,
        activation="swiglu",
        format=format_name or builder.dtype,
        **groups,
    )


def overload_of(quantization: Quantization, format_name: QuantizedFormat | None) -> str:
    """Which of the model's functions a node calls, where its layers are of several formats."""
    several = len(quantization.formats_of_experts) > 1
    return (format_name or "float") if several else ""


def shared_weight(builder: GraphBuilder, tokens: ir.Value, layer: int) -> ir.Value:
    """The weight of the expert that every token takes, [T, 1]: a sigmoid gate of its own."""
    prefix = f"layers.{layer}.shared_expert"
    logit = builder.linear(tokens, "shared_router", name=f"{prefix}.router", layer=layer)
    return builder.op("Sigmoid", logit, name=f"{prefix}.share")
