"""Normalization over the last axis: root-mean-square, and LayerNorm with a bias."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import ORT_DOMAIN, GraphBuilder


def norm(
    builder: GraphBuilder, x: ir.Value, role: str, *, name: str, layer: int | None = None
) -> ir.Value:
    """The normalization that the family has around its blocks."""
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
    """Gives x / sqrt(mean(x ** 2) + epsilon) * weight over the last axis, computed in float32.

    Written out in standard operators, which ONNX Runtime fuses: the fused operator stands in the
    standard domain there, where the ONNX checker does not know it.

    Args:
        builder: the graph.
        x: its last axis is as long as the weight.
        role: of the weight.
        name: of the result.
        layer: of the weight.
        epsilon: that of the model if none is given.
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
    """The normalized sum of x and the residual stream, and the sum itself."""
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
    # The second and third are statistics for training, which inference does not ask for.
    outputs[1].name = outputs[2].name = ""
    return outputs[0], outputs[3]
