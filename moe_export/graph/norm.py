"""Root-mean-square normalization."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import ORT_DOMAIN, GraphBuilder


def rms_norm(
    builder: GraphBuilder, x: ir.Value, role: str, *, name: str, layer: int | None = None
) -> ir.Value:
    """Gives x / sqrt(mean(x ** 2) + epsilon) * weight over the last axis, computed in float32.

    Written out in standard operators, which ONNX Runtime fuses: the fused operator stands in the
    standard domain there, where the ONNX checker does not know it.
    """
    weight = builder.weight(role, layer=layer)
    narrow = builder.dtype != "float32"
    if narrow:
        x = builder.op("Cast", x, name=f"{name}.widened", to=ir.DataType.FLOAT.value)
    two = builder.constant("two", np.array(2.0, dtype=np.float32))
    epsilon = builder.constant("epsilon", np.array(builder.spec.norm_epsilon, dtype=np.float32))
    square = builder.op("Pow", x, two, name=f"{name}.square")
    mean = builder.op("ReduceMean", square, builder.ints(-1), name=f"{name}.mean", keepdims=1)
    root = builder.op(
        "Sqrt", builder.op("Add", mean, epsilon, name=f"{name}.sum"), name=f"{name}.root"
    )
    normed = builder.op("Div", x, root, name=f"{name}.quotient")
    if narrow:
        normed = builder.op("Cast", normed, name=f"{name}.narrowed", to=builder.float_type.value)
    return builder.op("Mul", normed, weight, name=name)


def add_and_rms_norm(
    builder: GraphBuilder,
    x: ir.Value,
    residual: ir.Value,
    role: str,
    *,
    name: str,
    layer: int | None = None,
) -> tuple[ir.Value, ir.Value]:
    """The normalized sum of x and the residual stream, and the sum itself."""
    outputs = builder.ops(
        "SkipSimplifiedLayerNormalization",
        x,
        residual,
        builder.weight(role, layer=layer),
        name=name,
        num_outputs=4,
        domain=ORT_DOMAIN,
        epsilon=builder.spec.norm_epsilon,
    )
    # The second and third are statistics for training, which inference does not ask for.
    outputs[1].name = outputs[2].name = ""
    return outputs[0], outputs[3]
