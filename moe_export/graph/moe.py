"""MoE block: a router, and all experts of the layer in one `RaggedMoE` node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import ALL_TOKENS, GraphBuilder
from moe_export.graph.compressed import compressed
from moe_export.graph.router import router
from moe_export.op import spec as op_spec
from moe_export.quantization import Quantization, QuantizedFormat


def moe(builder: GraphBuilder, x: ir.Value, layer: int) -> ir.Value:
    """MoE block of a layer; x and result are [batch, sequence, hidden].

    The residual stream is not added.
    """
    spec, prefix = builder.spec, f"layers.{layer}.moe"
    tokens = builder.op("Reshape", x, builder.ints(-1, spec.hidden_size), name=f"{prefix}.tokens")
    builder.describe(tokens, ALL_TOKENS, spec.hidden_size)
    weights, indices = router(builder, tokens, layer)
    scales: dict[str, ir.Value] = {}
    if spec.compressed is not None:
        weights, indices, scales = compressed(builder, weights, indices, layer)
    if builder.dtype != "float32":
        name = f"layers.{layer}.router.weights"
        weights = builder.op("Cast", weights, name=name, to=builder.float_type.value)
    y = experts(builder, tokens, indices, weights, layer, scales)
    shape = builder.op("Shape", x, name=f"{prefix}.shape")
    return builder.op("Reshape", y, shape, name=prefix)


def experts(
    builder: GraphBuilder,
    tokens: ir.Value,
    indices: ir.Value,
    weights: ir.Value,
    layer: int,
    scales: Mapping[str, ir.Value],
) -> ir.Value:
    """Node with all experts of a layer: `RaggedMoE`, or `RaggedMoEPacked` in the packed layout.

    Args:
        builder: Graph that the node is added to.
        tokens: Normalized hidden states, [T, D].
        indices: Numbers of the chosen experts, [T, K] int64.
        weights: Routing weights of the chosen experts, [T, K].
        layer: Number of the layer.
        scales: Inputs of `op.spec.SCALE_INPUTS` by name, in their order.

    Returns:
        Weighted sum of the experts' outputs, [T, D].
    """
    spec, name = builder.spec, f"layers.{layer}.experts"
    extra = {"extra_inputs": " ".join(scales)} if scales else {}
    if builder.layout == "packed":
        packed = [builder.packed_experts(layer, f"{name}.packed")]
        if spec.has_shared_expert:
            packed.append(shared_weight(builder, tokens, layer))
        y = builder.op(
            op_spec.PACKED_NAME,
            tokens,
            indices,
            weights,
            *packed,
            *scales.values(),
            name=name,
            domain=op_spec.DOMAIN,
            **extra,
        )
        return builder.describe(y, ALL_TOKENS, spec.hidden_size)
    format_name = spec.quantization.format_of("gate", layer)
    stored = format_name or spec.quantization.float_of("gate", layer)
    groups = {} if format_name is None else {"group_size": spec.quantization.group_size}
    inputs = [shared_weight(builder, tokens, layer)] if spec.has_shared_expert else []
    inputs += scales.values()
    inputs += [
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
    y = builder.op(
        op_spec.NAME,
        tokens,
        indices,
        weights,
        *inputs,
        name=name,
        domain=op_spec.DOMAIN,
        overload=overload_of(spec.quantization, stored),
        num_experts=spec.num_experts,
        activation="swiglu",
        format=stored or builder.dtype,
        **groups,
        **extra,
    )
    return builder.describe(y, ALL_TOKENS, spec.hidden_size)


def overload_of(
    quantization: Quantization, format_name: QuantizedFormat | Literal["bfloat16"] | None
) -> str:
    """Overload of the model's function for one format; empty if all layers have one format."""
    several = len(quantization.formats_of_experts) > 1
    return (format_name or "float") if several else ""


def shared_weight(builder: GraphBuilder, tokens: ir.Value, layer: int) -> ir.Value:
    """Weight of the shared expert, [T, 1]: the sigmoid of its own gate, or 1 without a gate."""
    prefix = f"layers.{layer}.shared_expert"
    if builder.spec.family.shared_gate:
        logit = builder.linear(tokens, "shared_router", name=f"{prefix}.router", layer=layer)
        return builder.op("Sigmoid", logit, name=f"{prefix}.share")
    count = builder.op("Shape", tokens, name=f"{prefix}.tokens", start=0, end=1)
    shape = builder.op("Concat", count, builder.ints(1), name=f"{prefix}.shape", axis=0)
    one = builder.constant("one", np.array(1, dtype=builder.dtype))
    return builder.op("Expand", one, shape, name=f"{prefix}.share")
