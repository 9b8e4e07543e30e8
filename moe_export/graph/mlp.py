"""MLP of layers that have no experts."""

from __future__ import annotations

import onnx_ir as ir

from moe_export.graph.builder import GraphBuilder


def dense_mlp(builder: GraphBuilder, x: ir.Value, layer: int) -> ir.Value:
    """MLP block (silu(x · gate) ⊙ (x · up)) · down; x and result are [batch, sequence, hidden].

    The residual stream is not added.
    """
    prefix = f"layers.{layer}.mlp"
    gate = builder.linear(x, "dense_gate", name=f"{prefix}.gate", layer=layer)
    up = builder.linear(x, "dense_up", name=f"{prefix}.up", layer=layer)
    sigmoid = builder.op("Sigmoid", gate, name=f"{prefix}.sigmoid")
    silu = builder.op("Mul", gate, sigmoid, name=f"{prefix}.silu")
    hidden = builder.op("Mul", silu, up, name=f"{prefix}.hidden")
    return builder.linear(hidden, "dense_down", name=prefix, layer=layer)
