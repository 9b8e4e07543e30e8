"""Normalization over the last axis: root-mean-square, and LayerNorm with a bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import ORT_DOMAIN, TOKENS_SHAPE, GraphBuilder


def norm(
    builder: GraphBuilder, x: ir.Value, role: str, *, name: str, layer: int | None = None
) -> ir.Value:
    """Normalization of the residual stream, of the kind that the family uses."""
    if builder.spec.family.norm == "rms":
        return rms_norm(builder, x, role, name=name, layer=layer)
    return builder.op(
        "LayerNormalization",
        x,
        builder.weight(role, layer=layer),
        builder.weight(f"{role}_bias", layer=layer),
        name=name,
        axis=-1,
        epsilon=builder.spec.norm_epsilon,
    )


def rms_norm(
    builder: GraphBuilder,
    x: ir.Value,
    role: str,
    *,
    name: str,
    layer: int | None = None,
    epsilon: float | None = None,
) -> ir.Value:
    """Computes x / sqrt(mean(x ** 2) + epsilon) * weight over the last axis in float32.

    The graph has standard operators, which ONNX Runtime fuses. Its fused operator is in the
    standard domain, where the ONNX checker does not know it.

    Args:
        builder: Graph that the nodes are added to.
        x: Input whose last axis is as long as the weight.
        role: Role of the weight.
        name: Name of the result.
        layer: Layer of the weight; None for the norm after the last layer.
        epsilon: Constant added to the mean; the model's if None.
    """
    weight = builder.weight(role, layer=layer)
    narrow = builder.dtype != "float32"
    if narrow:
        x = builder.op("Cast", x, name=f"{name}.widened", to=ir.DataType.FLOAT.value)
    two = builder.constant("two", np.array(2.0, dtype=np.float32))
    if epsilon is None:
        epsilon, epsilon_name = builder.spec.norm_epsilon, "epsilon"
    else:
        epsilon_name = f"epsilon_{epsilon:g}"
    added = builder.constant(epsilon_name, np.array(epsilon, dtype=np.float32))
    square = builder.op("Pow", x, two, name=f"{name}.square")
    mean = builder.op("ReduceMean", square, builder.ints(-1), name=f"{name}.mean", keepdims=1)
    root = builder.op(
        "Sqrt", builder.op("Add", mean, added, name=f"{name}.sum"), name=f"{name}.root"
    )
    normed = builder.op("Div", x, root, name=f"{name}.quotient")
    if narrow:
        normed = builder.op("Cast", normed, name=f"{name}.narrowed", to=builder.float_type.value)
    return builder.op("Mul", normed, weight, name=name)


def add_and_norm(
    builder: GraphBuilder,
    x: ir.Value,
    residual: ir.Value,
    role: str,
    *,
    name: str,
    layer: int | None = None,
) -> tuple[ir.Value, ir.Value]:
    """Adds x to the residual stream; returns the normalized sum and the sum."""
    weights = [builder.weight(role, layer=layer)]
    kind = "SkipSimplifiedLayerNormalization"
    if builder.spec.family.norm == "layer":
        weights.append(builder.weight(f"{role}_bias", layer=layer))
        kind = "SkipLayerNormalization"
    outputs = builder.ops(
        kind,
        x,
        residual,
        *weights,
        name=name,
        num_outputs=4,
        domain=ORT_DOMAIN,
        epsilon=builder.spec.norm_epsilon,
    )
    # The second and third outputs are statistics for training.
    outputs[1].name = outputs[2].name = ""
    for value in (outputs[0], outputs[3]):
        builder.describe(value, *TOKENS_SHAPE, builder.spec.hidden_size)
    return outputs[0], outputs[3]
