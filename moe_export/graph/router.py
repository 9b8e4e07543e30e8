"""Router: the choice of experts for each token, as in `moe_export.torch_model.routing`.

Legend: T tokens, E experts, K top-k.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.families.features import ExpertGroups
from moe_export.graph.builder import GraphBuilder
from moe_export.graph.condensers import appended, biased, reweighed


def router(builder: GraphBuilder, tokens: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """Routing weights and numbers of the chosen experts, both [T, K], in the router's order.

    All steps after the product with the router's weights are in float32, as in transformers, and
    so are the weights.
    """
    spec, prefix = builder.spec, f"layers.{layer}.router"
    narrow = builder.dtype != "float32"
    if narrow and spec.family.router_float32:
        logits = _wide_logits(builder, tokens, layer)
    else:
        logits = builder.linear(tokens, "router", name=f"{prefix}.logits", layer=layer)
        if narrow:
            logits = _cast(builder, logits, ir.DataType.FLOAT, f"{prefix}.widened")
    weights, indices = _weighed(builder, logits, layer)
    if spec.normalize_top_k:
        total = builder.op(
            "ReduceSum", weights, builder.ints(-1), name=f"{prefix}.total", keepdims=1
        )
        epsilon = spec.family.routing.total_epsilon
        if epsilon:
            least = _float(builder, "router_epsilon", epsilon)
            total = builder.op("Add", total, least, name=f"{prefix}.positive_total")
        weights = builder.op("Div", weights, total, name=f"{prefix}.normalized")
    if spec.routing_scale != 1:
        scale = _float(builder, "routing_scale", spec.routing_scale)
        weights = builder.op("Mul", weights, scale, name=f"{prefix}.scaled")
    return weights, indices


def _weighed(builder: GraphBuilder, logits: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """Scores and numbers of the experts of a token, chosen or condensers, both [T, K]."""
    rule, prefix = builder.spec.condensers, f"layers.{layer}.router"
    if rule is None:
        return _chosen(builder, logits, layer)
    choice = biased(builder, logits, layer)
    shares = builder.op("Softmax", choice, name=f"{prefix}.softmax", axis=-1)
    weights, indices = _chosen(builder, choice, layer, shares)
    if not rule.bias_in_weights:
        shares = builder.op("Softmax", logits, name=f"{prefix}.unbiased_softmax", axis=-1)
        weights = reweighed(builder, shares, indices, layer)
    return appended(builder, shares, weights, indices, layer)


def _chosen(
    builder: GraphBuilder, logits: ir.Value, layer: int, shares: ir.Value | None = None
) -> tuple[ir.Value, ir.Value]:
    """Scores and numbers of the chosen experts, both [T, K], by the rule of the family.

    Args:
        builder: Graph that the nodes are added to.
        logits: Logits that experts are chosen by, [T, E].
        layer: Number of the layer.
        shares: Softmax of these logits, [T, E]; None if the graph does not have it yet.
    """
    prefix = f"layers.{layer}.router"
    match builder.spec.family.routing.score:
        case "sparsemixer":
            return _sparse_mixer(builder, logits, prefix)
        case "sigmoid":
            return _sigmoid_top_k(builder, logits, layer)
        case "softmax":
            if shares is None:
                shares = builder.op("Softmax", logits, name=f"{prefix}.softmax", axis=-1)
            return _softmax_top_k(builder, shares, prefix)


def _sigmoid_top_k(
    builder: GraphBuilder, logits: ir.Value, layer: int
) -> tuple[ir.Value, ir.Value]:
    """Sigmoids of the experts whose sigmoid and bias are largest in the chosen groups."""
    spec, prefix = builder.spec, f"layers.{layer}.router"
    scores = choice = builder.op("Sigmoid", logits, name=f"{prefix}.sigmoid")
    if spec.family.routing.has_choice_bias:
        bias = builder.weight("choice_bias", layer=layer, dtype="float32")
        choice = builder.op("Add", scores, bias, name=f"{prefix}.biased")
    if spec.groups is not None:
        choice = _drop_other_groups(builder, choice, spec.groups, f"{prefix}.groups")
    top_k = builder.ints(spec.chosen_experts)
    _, indices = builder.ops("TopK", choice, top_k, name=f"{prefix}.top_k", num_outputs=2, axis=-1)
    weights = builder.op("GatherElements", scores, indices, name=f"{prefix}.chosen", axis=-1)
    return weights, indices


def _softmax_top_k(
    builder: GraphBuilder, scores: ir.Value, prefix: str
) -> tuple[ir.Value, ir.Value]:
    """The K largest of a softmax over all experts, in the chosen groups."""
    if builder.spec.groups is not None:
        scores = _mask_other_groups(builder, scores, builder.spec.groups, f"{prefix}.groups")
    top_k = builder.ints(builder.spec.chosen_experts)
    weights, indices = builder.ops(
        "TopK", scores, top_k, name=f"{prefix}.top_k", num_outputs=2, axis=-1
    )
    return weights, indices


def _mask_other_groups(
    builder: GraphBuilder, scores: ir.Value, groups: ExpertGroups, prefix: str
) -> ir.Value:
    """Scores [T, E] in which experts outside the groups with the best experts are zero."""
    by_group = _by_group(builder, scores, groups, prefix)
    best = builder.op("ReduceMax", by_group, builder.ints(-1), name=f"{prefix}.best", keepdims=0)
    mask = _chosen_groups(builder, best, groups, prefix)
    masked = builder.op("Mul", by_group, mask, name=f"{prefix}.masked")
    return builder.op("Reshape", masked, builder.ints(0, -1), name=prefix)


def _drop_other_groups(
    builder: GraphBuilder, scores: ir.Value, groups: ExpertGroups, prefix: str
) -> ir.Value:
    """Scores [T, E], minus infinity outside the groups whose two best experts have most."""
    by_group = _by_group(builder, scores, groups, prefix)
    best, _ = builder.ops(
        "TopK", by_group, builder.ints(2), name=f"{prefix}.two", num_outputs=2, axis=-1
    )
    best = builder.op("ReduceSum", best, builder.ints(-1), name=f"{prefix}.best", keepdims=0)
    mask = _chosen_groups(builder, best, groups, prefix)
    mask = builder.op("Cast", mask, name=f"{prefix}.is_chosen", to=ir.DataType.BOOL.value)
    never = _float(builder, "never", -np.inf)
    masked = builder.op("Where", mask, by_group, never, name=f"{prefix}.masked")
    return builder.op("Reshape", masked, builder.ints(0, -1), name=prefix)


def _by_group(
    builder: GraphBuilder, scores: ir.Value, groups: ExpertGroups, prefix: str
) -> ir.Value:
    """Scores [T, groups, experts of a group]."""
    shape = builder.ints(0, groups.count, -1)
    return builder.op("Reshape", scores, shape, name=f"{prefix}.scores")


def _chosen_groups(
    builder: GraphBuilder, best: ir.Value, groups: ExpertGroups, prefix: str
) -> ir.Value:
    """Mask [T, groups, 1]: one for the groups with the best scores [T, groups], else zero."""
    kept = builder.ints(groups.kept)
    _, chosen = builder.ops("TopK", best, kept, name=f"{prefix}.top", num_outputs=2, axis=-1)
    count = builder.constant("groups", np.array(groups.count))
    off_on = builder.constant("off_on", np.array([0, 1], dtype=np.float32))
    marks = builder.op("OneHot", chosen, count, off_on, name=f"{prefix}.marks", axis=-1)
    mask = builder.op("ReduceSum", marks, builder.ints(1), name=f"{prefix}.mask", keepdims=0)
    return builder.op("Unsqueeze", mask, builder.ints(-1), name=f"{prefix}.mask_column")


def _sparse_mixer(
    builder: GraphBuilder, logits: ir.Value, prefix: str
) -> tuple[ir.Value, ir.Value]:
    """Sparse mixer: the one or two largest logits, each with a softmax over the logits near it."""
    top_k = builder.spec.chosen_experts
    best, indices = builder.ops(
        "TopK", logits, builder.ints(top_k), name=f"{prefix}.top_k", num_outputs=2, axis=-1
    )
    if top_k == 1:
        magnitude = builder.op("Abs", logits, name=f"{prefix}.magnitude")
        return _near(builder, logits, magnitude, best, logits, f"{prefix}.choice_0"), indices
    halves = builder.ints(1, 1)
    bests = builder.ops("Split", best, halves, name=f"{prefix}.best", num_outputs=2, axis=-1)
    first = builder.ops("Split", indices, halves, name=f"{prefix}.chosen", num_outputs=2, axis=-1)
    never = _float(builder, "never", -np.inf)
    nothing = builder.op("Add", bests[0], never, name=f"{prefix}.nothing")
    others = builder.op(
        "ScatterElements", logits, first[0], nothing, name=f"{prefix}.others", axis=-1
    )
    magnitude = builder.op("Abs", logits, name=f"{prefix}.magnitude")
    weights = [
        _near(builder, logits, magnitude, value, rivals, f"{prefix}.choice_{choice}")
        for choice, (value, rivals) in enumerate(zip(bests, (logits, others), strict=True))
    ]
    return builder.op("Concat", *weights, name=f"{prefix}.both", axis=-1), indices


def _near(
    builder: GraphBuilder,
    logits: ir.Value,
    magnitude: ir.Value,
    value: ir.Value,
    rivals: ir.Value,
    name: str,
) -> ir.Value:
    """Softmax at a chosen logit [T, 1] over those of its rivals [T, E] that are near it."""
    never = _float(builder, "never", -np.inf)
    limit = _float(builder, "router_reach", 2 * builder.spec.router_jitter)
    below = builder.op("Sub", value, logits, name=f"{name}.below")
    unit = builder.op("Max", magnitude, value, name=f"{name}.unit")
    distance = builder.op("Div", below, unit, name=f"{name}.distance")
    far = builder.op("Greater", distance, limit, name=f"{name}.far")
    exponent = builder.op("Sub", rivals, value, name=f"{name}.exponent")
    exponent = builder.op("Where", far, never, exponent, name=f"{name}.near")
    share = builder.op("Exp", exponent, name=f"{name}.share")
    total = builder.op("ReduceSum", share, builder.ints(-1), name=f"{name}.total", keepdims=1)
    return builder.op("Reciprocal", total, name=name)


def _wide_logits(builder: GraphBuilder, tokens: ir.Value, layer: int) -> ir.Value:
    """Router logits [T, E], computed in float32."""
    prefix, wide = f"layers.{layer}.router", ir.DataType.FLOAT
    weight = builder.weight("router", layer=layer, transpose=True)
    operands = (
        _cast(builder, tokens, wide, f"{prefix}.wide_tokens"),
        _cast(builder, weight, wide, f"{prefix}.wide_weight"),
    )
    return builder.op("MatMul", *operands, name=f"{prefix}.logits")


def _cast(builder: GraphBuilder, x: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    return builder.op("Cast", x, name=name, to=to.value)


def _float(builder: GraphBuilder, name: str, value: float) -> ir.Value:
    return builder.constant(name, np.array(value, dtype=np.float32))
