"""Router bias and condensers, as in `moe_export.torch_model.condensers`.

Legend: T tokens, E experts, K chosen experts, C condensers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import GraphBuilder


def biased(builder: GraphBuilder, logits: ir.Value, layer: int) -> ir.Value:
    """Logits [T, E] that experts are chosen by, float32."""
    bias = builder.weight("router_bias", layer=layer, dtype="float32")
    return builder.op("Add", logits, bias, name=f"layers.{layer}.router.biased")


def reweighed(builder: GraphBuilder, shares: ir.Value, indices: ir.Value, layer: int) -> ir.Value:
    """Weights [T, K] of the chosen experts where the bias is for the choice alone.

    Args:
        builder: Graph that the node is added to.
        shares: Softmax of the logits without the bias, [T, E].
        indices: Numbers of the chosen experts, [T, K].
        layer: Number of the layer.
    """
    name = f"layers.{layer}.router.unbiased"
    return builder.op("GatherElements", shares, indices, name=name, axis=-1)


def appended(
    builder: GraphBuilder, shares: ir.Value, weights: ir.Value, indices: ir.Value, layer: int
) -> tuple[ir.Value, ir.Value]:
    """Weights and numbers [T, K + C] of the chosen experts and the condensers.

    A condenser that a token has chosen has the weight 0 in its own column, so that it counts once.

    Args:
        builder: Graph that the nodes are added to.
        shares: Softmax that weights are taken from, [T, E].
        weights: Weights of the chosen experts, [T, K].
        indices: Numbers of the chosen experts, [T, K].
        layer: Number of the layer.
    """
    rule, prefix = builder.spec.condensers, f"layers.{layer}.condensers"
    if rule is None or not rule.count:
        return weights, indices
    experts = builder.constant(f"{prefix}.experts", np.array(rule.experts[layer], np.int64))
    share = builder.op("Gather", shares, experts, name=f"{prefix}.share", axis=1)
    column = builder.op("Unsqueeze", indices, builder.ints(-1), name=f"{prefix}.chosen")
    same = builder.op("Equal", column, experts, name=f"{prefix}.same")
    marks = builder.op("Cast", same, name=f"{prefix}.marks", to=ir.DataType.FLOAT.value)
    chosen = builder.op("ReduceMax", marks, builder.ints(1), name=f"{prefix}.is_chosen", keepdims=0)
    one = builder.constant("one_float32", np.array(1, dtype=np.float32))
    free = builder.op("Sub", one, chosen, name=f"{prefix}.is_free")
    own = builder.op("Mul", share, free, name=f"{prefix}.weights")
    shape = builder.op("Shape", own, name=f"{prefix}.shape")
    numbers = builder.op("Expand", experts, shape, name=f"{prefix}.numbers")
    return (
        builder.op("Concat", weights, own, name=f"{prefix}.all_weights", axis=-1),
        builder.op("Concat", indices, numbers, name=f"{prefix}.all_numbers", axis=-1),
    )
