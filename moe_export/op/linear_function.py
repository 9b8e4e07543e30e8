"""`Linear` as an ONNX function of standard operators.

ONNX Runtime fuses DequantizeLinear and MatMul to one MatMulNBits when it loads the model, which
reads as fast and takes as much memory as a MatMulNBits node in the file; loading takes longer.
"""

from __future__ import annotations

import onnx_ir as ir

from moe_export.formats import TABLE
from moe_export.op.function import ATTRIBUTE_TYPES, OPSET
from moe_export.op.function_body import FunctionBody, WeightDecoder
from moe_export.op.spec import (
    DOMAIN,
    LINEAR_ATTRIBUTES,
    LINEAR_NAME,
    OUTPUTS,
    QUANTIZED_ATTRIBUTES,
    QUANTIZED_FORMATS,
    Format,
    linear_input_names,
)


def linear_function(
    format_name: Format = "float32", group_size: int = 0, *, bias: bool = False
) -> ir.Function:
    """Builds the function for matrices of one format.

    Args:
        format_name: Format of the matrix; float32 and float16 give the same function.
        group_size: Depths that share a scale; 0 in the float formats.
        bias: True if the nodes have a bias.

    Raises:
        RecipeError: No body is known for the format.
    """
    TABLE[format_name].require("portable")
    inputs = [ir.Value(name=name) for name in linear_input_names(format_name, bias=bias)]
    x, *weight = inputs
    body = FunctionBody()
    matrix = WeightDecoder(body, x, format_name, group_size).weight(
        weight[: len(weight) - bias], "weight"
    )
    y = body.op("MatMul", x, matrix, name="product" if bias else OUTPUTS[0])
    if bias:
        y = body.op("Add", y, weight[-1], name=OUTPUTS[0])
    graph = ir.Graph(inputs, [y], nodes=body.nodes, opset_imports={"": OPSET}, name=LINEAR_NAME)
    is_quantized = format_name in QUANTIZED_FORMATS
    kinds = LINEAR_ATTRIBUTES | (QUANTIZED_ATTRIBUTES if is_quantized else {})
    attributes = [ir.Attr(name, ATTRIBUTE_TYPES[kind], None) for name, kind in kinds.items()]
    return ir.Function(DOMAIN, LINEAR_NAME, graph=graph, attributes=attributes)
