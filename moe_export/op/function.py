"""`RaggedMoE` as an ONNX function of standard operators.

Every exported model carries it, so ONNX Runtime runs the model without any library. Where the
native library is registered, its kernel takes the node and this body is not used.

Pairs of (token, chosen expert) are sorted by expert, split into one block of rows per expert, and
brought back to token order by a gather. ScatterND(reduction="add") would be shorter, but in ONNX
Runtime's CPU provider (seen in 1.32) its threads lose additions to one row, and it does not take
float16.

Legend: T tokens, D hidden, K experts per token, E experts, N = T * K pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from moe_export.formats import TABLE
from moe_export.op.function_body import FunctionBody, WeightDecoder
from moe_export.op.function_rows import ExpertRows
from moe_export.op.reference import GELU_CUBIC, GELU_LINEAR
from moe_export.op.spec import (
    ATTRIBUTES,
    DOMAIN,
    EXTRA_INPUTS_ATTRIBUTE,
    GATED,
    INPUTS,
    NAME,
    OUTPUTS,
    QUANTIZED_ATTRIBUTES,
    QUANTIZED_FORMATS,
    Activation,
    Format,
    expert_inputs,
    input_names,
    weight_parts,
)

OPSET = 21
"""Opset of the standard operators in the body, and of the exported model."""

ATTRIBUTE_TYPES = {"int": ir.AttributeType.INT, "string": ir.AttributeType.STRING}


def ragged_moe_function(
    num_experts: int,
    format_name: Format = "float32",
    group_size: int = 0,
    *,
    shared_expert: bool = False,
    activation: Activation = "swiglu",
    extra_inputs: Sequence[str] = (),
) -> ir.Function:
    """Builds the function for layers of `num_experts` experts, of any widths.

    Args:
        num_experts: number of routed experts.
        format_name: format of the weights; float32 and float16 give the same function.
        group_size: depths that share a scale; 0 in the float formats.
        shared_expert: True if the nodes have a shared expert.
        activation: activation of the nodes.
        extra_inputs: names of the nodes' scales, of `spec.SCALE_INPUTS`.

    Raises:
        RecipeError: No body is known for the format.
    """
    TABLE[format_name].require("portable")
    names = input_names(
        num_experts,
        format_name,
        shared_expert=shared_expert,
        activation=activation,
        extra_inputs=extra_inputs,
    )
    inputs = [ir.Value(name=name) for name in names]
    x, expert_indices, routing_weights = inputs[:3]
    quantized = format_name in QUANTIZED_FORMATS
    roles = expert_inputs(activation)
    tensors_each = len(weight_parts(format_name))
    each = len(roles) * tensors_each
    first_scale = len(INPUTS) + shared_expert
    first_weight = first_scale + len(extra_inputs)
    scales = dict(zip(extra_inputs, inputs[first_scale:first_weight], strict=True))
    body = FunctionBody()
    op, constant = body.op, body.constant

    def activated(a: ir.Value, suffix: str) -> ir.Value:
        if activation in ("relu", "relu2"):
            relu = op("Relu", a, name=f"relu_{suffix}")
            return op("Mul", relu, relu, name=f"relu2_{suffix}") if activation == "relu2" else relu
        if activation == "geglu":
            # Written with a sigmoid, as in the reference.
            square = op("Mul", a, a, name=f"square_{suffix}")
            cubic = op("Mul", square, gelu_cubic, name=f"cubic_{suffix}")
            slope = op("Add", cubic, gelu_linear, name=f"slope_{suffix}")
            twice_z = op("Mul", a, slope, name=f"twice_z_{suffix}")
            sigmoid = op("Sigmoid", twice_z, name=f"sigmoid_{suffix}")
            return op("Mul", a, sigmoid, name=f"gelu_{suffix}")
        sigmoid = op("Sigmoid", a, name=f"sigmoid_{suffix}")
        return op("Mul", a, sigmoid, name=f"silu_{suffix}")

    def feed_forward(
        rows: Sequence[ir.Value],
        tensors: Sequence[ir.Value],
        suffix: str,
        hidden_factor: ir.Value | None = None,
    ) -> ir.Value:
        *factors, down = (
            decoder.weight(tensors[i * tensors_each : (i + 1) * tensors_each], f"{role}_{suffix}")
            for i, role in enumerate(roles)
        )
        products = [
            op("MatMul", row, factor, name=f"{role}_product_{suffix}")
            for role, row, factor in zip(roles, rows, factors, strict=False)
        ]
        hidden = activated(products[0], suffix)
        if activation in GATED:
            hidden = op("Mul", hidden, products[1], name=f"hidden_{suffix}")
        if hidden_factor is not None:
            hidden = op("Mul", hidden, hidden_factor, name=f"scaled_hidden_{suffix}")
        return op("MatMul", hidden, down, name=f"out_{suffix}")

    if activation == "geglu":
        gelu_cubic, gelu_linear = (
            op("CastLike", constant(f"{name}_float", value), x, name=name)
            for name, value in (("gelu_cubic", GELU_CUBIC), ("gelu_linear", GELU_LINEAR))
        )
    one, minus_one = constant("one", [1]), constant("minus_one", [-1])
    decoder = WeightDecoder(body, x, format_name, group_size)

    # Row e of the one-hot marks the pairs of expert e. Its non-zero positions, in order, are the
    # pairs sorted by expert and then by position: a stable sort without ties.
    flat_N = op("Reshape", expert_indices, minus_one, name="pair_experts")
    depth, off_on = constant("depth", num_experts), constant("off_on", [0, 1])
    one_hot_EN = op("OneHot", flat_N, depth, off_on, name="is_expert", axis=0)
    pairs_E = op("ReduceSum", one_hot_EN, one, name="pairs_per_expert", keepdims=0)
    positions = op("NonZero", one_hot_EN, name="expert_and_pair")
    sorted_1N = op("Gather", positions, one, name="sorted_pairs_row", axis=0)
    sorted_N = op("Reshape", sorted_1N, minus_one, name="sorted_pairs")
    top_k = op("Shape", expert_indices, name="top_k", start=1, end=2)
    token_N = op("Div", sorted_N, top_k, name="sorted_tokens")
    rows = ExpertRows(body, x, scales, token_N, pairs_E, num_experts)
    weights = [
        inputs[first_weight + each * e : first_weight + each * (e + 1)] for e in range(num_experts)
    ]
    hidden_factors: Sequence[ir.Value | None] = [None] * num_experts
    if "hidden_scale" in scales:
        # Scales have the columns of their codes; not every executor knows the shape of 4-bit codes.
        of_width = 1 if quantized else 0
        hidden_factors = rows.hidden_factors(
            [
                op("Shape", tensors[of_width], name=f"width_{e}", start=1, end=2)
                for e, tensors in enumerate(weights)
            ]
        )
    blocks = [
        feed_forward((rows.gate[e], rows.up[e]), tensors, str(e), hidden_factors[e])
        for e, tensors in enumerate(weights)
    ]
    out_ND = op("Concat", *blocks, name="sorted_out", axis=0)

    # place[p] is the place of pair p in the sorted order: the inverse permutation.
    start, step = constant("start", 0), constant("step", 1)
    order_N = op("Range", start, op("Size", flat_N, name="num_pairs"), step, name="order")
    place_N = op("ScatterElements", flat_N, sorted_N, order_N, name="place", axis=0)
    indices_shape = op("Shape", expert_indices, name="indices_shape")
    place_TK = op("Reshape", place_N, indices_shape, name="place_by_token")
    out_TKD = op("Gather", out_ND, place_TK, name="out_by_token", axis=0)
    weight_TK1 = op("Unsqueeze", routing_weights, minus_one, name="weights_column")
    weighted = op("Mul", out_TKD, weight_TK1, name="weighted")
    routed_name = "routed" if shared_expert else OUTPUTS[0]
    y = op("ReduceSum", weighted, one, name=routed_name, keepdims=0)
    if shared_expert:
        shared = feed_forward((x, x), inputs[-each:], "shared")
        weighted_shared = op("Mul", shared, inputs[len(INPUTS)], name="weighted_shared")
        y = op("Add", y, weighted_shared, name=OUTPUTS[0])

    graph = ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": OPSET}, name=NAME)
    kinds = ATTRIBUTES | (QUANTIZED_ATTRIBUTES if quantized else {})
    kinds |= EXTRA_INPUTS_ATTRIBUTE if extra_inputs else {}
    attributes = [ir.Attr(name, ATTRIBUTE_TYPES[kind], None) for name, kind in kinds.items()]
    return ir.Function(DOMAIN, NAME, graph=graph, attributes=attributes)
