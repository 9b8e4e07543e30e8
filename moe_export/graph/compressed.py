"""Compressed experts: the last of a token's experts are vectors that scale the first ones.

A token's scale is 1 + sum over its auxiliary experts of share * (vector - 1), with shares that sum
to one, as in `moe_export.torch_model.compressed`. The graph stores vector - 1, which keeps small
steps from one in float16. Auxiliary weights whose sum is 0 scale nothing.

Legend: T tokens, K chosen experts, M computed experts, A auxiliary ones, E experts,
X length of a vector.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from moe_export.families.base import ModelSpec
from moe_export.families.features import UNITS_ROLE
from moe_export.graph.builder import ALL_TOKENS, GraphBuilder

ROLES = {
    "input_scale": "compressed_input",
    "up_scale": "compressed_up",
    "hidden_scale": "compressed_hidden",
    "units": UNITS_ROLE,
}
"""Role of the tensor that an input of the operator comes from, in the operator's order."""


def extra_inputs(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the inputs that scale the experts of a model, of `op.spec.SCALE_INPUTS`."""
    has = (spec.scales_input, spec.scales_up, spec.scales_hidden, spec.has_units)
    return tuple(name for name, is_there in zip(ROLES, has, strict=True) if is_there)


def compressed(
    builder: GraphBuilder, weights_TK: ir.Value, experts_TK: ir.Value, layer: int
) -> tuple[ir.Value, ir.Value, dict[str, ir.Value]]:
    """Weights and numbers of the computed experts, both [T, M], and the operator's scales by name.

    Args:
        builder: Graph that the nodes are added to.
        weights_TK: Routing weights in the router's order, float32.
        experts_TK: Numbers of the chosen experts, int64.
        layer: Number of the layer.
    """
    spec, prefix = builder.spec, f"layers.{layer}.compressed"
    assert spec.compressed is not None
    sizes = builder.ints(spec.active_experts, spec.compressed.auxiliary)
    weights_TM, weights_TA = builder.ops(
        "Split", weights_TK, sizes, name=f"{prefix}.weights", num_outputs=2, axis=-1
    )
    experts_TM, experts_TA = builder.ops(
        "Split", experts_TK, sizes, name=f"{prefix}.experts", num_outputs=2, axis=-1
    )
    share_T1A = _shares(builder, weights_TA, prefix)
    scales = {
        name: _scale(builder, name, share_T1A, experts_TA, layer)
        for name in extra_inputs(spec)
        if name != "units"
    }
    if spec.has_units:
        scales["units"] = builder.units(layer)
    return weights_TM, experts_TM, scales


def _shares(builder: GraphBuilder, weights_TA: ir.Value, prefix: str) -> ir.Value:
    """Weights of the auxiliary experts over their sum, [T, 1, A]; zeros if the sum is 0."""
    zero, one = (
        builder.constant(name, np.array(value, np.float32))
        for name, value in (("no_weight", 0), ("whole_weight", 1))
    )
    total = builder.op("ReduceSum", weights_TA, builder.ints(-1), name=f"{prefix}.total")
    is_zero = builder.op("Equal", total, zero, name=f"{prefix}.is_zero")
    divisor = builder.op("Where", is_zero, one, total, name=f"{prefix}.divisor")
    share = builder.op("Div", weights_TA, divisor, name=f"{prefix}.share")
    return builder.op("Unsqueeze", share, builder.ints(1), name=f"{prefix}.share_row")


def _scale(
    builder: GraphBuilder, name: str, share_T1A: ir.Value, experts_TA: ir.Value, layer: int
) -> ir.Value:
    """Factors [T, X] of all tokens, in the model's dtype."""
    prefix = f"layers.{layer}.compressed.{name}"
    table_EX = builder.weight(ROLES[name], layer=layer, offset=-1.0)
    rows_TAX = builder.op("Gather", table_EX, experts_TA, name=f"{prefix}.rows", axis=0)
    if builder.dtype != "float32":
        rows_TAX = _cast(builder, rows_TAX, ir.DataType.FLOAT, f"{prefix}.wide_rows")
    mean_T1X = builder.op("MatMul", share_T1A, rows_TAX, name=f"{prefix}.mean")
    mean_TX = builder.op("Squeeze", mean_T1X, builder.ints(1), name=f"{prefix}.mean_row")
    one = builder.constant("whole_weight", np.array(1, np.float32))
    scale = builder.op("Add", mean_TX, one, name=f"{prefix}.wide")
    if builder.dtype != "float32":
        scale = _cast(builder, scale, builder.float_type, prefix)
    assert table_EX.shape is not None
    return builder.describe(scale, ALL_TOKENS, int(table_EX.shape.numpy()[1]))


def _cast(builder: GraphBuilder, x: ir.Value, to: ir.DataType, name: str) -> ir.Value:
    return builder.op("Cast", x, name=name, to=to.value)
