"""Nodes of a function body, and weights in any format as values of x's dtype."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from moe_export.formats import GRIDS
from moe_export.op.spec import QUANTIZED_FORMATS, Format


class FunctionBody:
    """Nodes of a function body, in order. The output of a node has the node's name."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []

    def op(self, kind: str, *operands: ir.Value, name: str, **attributes: int) -> ir.Value:
        """Appends a node of a standard operator and returns its output."""
        return self._append(ir.node(kind, list(operands), attributes, name=name), name)

    def constant(self, name: str, value: float | list[int] | list[float]) -> ir.Value:
        """Appends a constant: a scalar, or a vector for a list."""
        kind = {int: "value_int", float: "value_float"}.get(type(value), "value_ints")
        if isinstance(value, list) and isinstance(value[0], float):
            kind = "value_floats"
        return self._append(ir.node("Constant", [], {kind: value}, name=name), name)

    def _append(self, node: ir.Node, name: str) -> ir.Value:
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]


class WeightDecoder:
    """Turns stored weights into values of x's dtype.

    Args:
        body: Body that the nodes are added to.
        x: Input of which the values get the dtype.
        format_name: Format of the weights.
        group_size: Depths that share a scale; 0 in the float formats.
    """

    def __init__(
        self, body: FunctionBody, x: ir.Value, format_name: Format, group_size: int
    ) -> None:
        self._body, self._x = body, x
        self._format, self._group_size = format_name, group_size
        codebook = GRIDS[format_name].codebook if format_name in QUANTIZED_FORMATS else None
        self._has_codebook = codebook is not None
        if codebook is not None:
            self._points = body.constant("codebook", codebook.tolist())
            self._first_row = body.constant("first_row", 0)
            self._next_row = body.constant("next_row", 1)
            self._rows_of_group = body.constant("rows_of_group", group_size)

    def weight(self, tensors: Sequence[ir.Value], suffix: str) -> ir.Value:
        """Matrix [K, N] of one weight.

        Args:
            tensors: Parts of the weight, as in `spec.weight_parts`.
            suffix: End of the names of the nodes.
        """
        if self._has_codebook:
            return self._looked_up(tensors[0], tensors[1], suffix)
        # ONNX Runtime fuses DequantizeLinear and the following MatMul to one MatMulNBits.
        if self._format in QUANTIZED_FORMATS:
            return self._body.op(
                "DequantizeLinear",
                *tensors,
                name=f"dequantized_{suffix}",
                axis=0,
                block_size=self._group_size,
            )
        if self._format == "bfloat16":
            return self._body.op("CastLike", *tensors, self._x, name=f"widened_{suffix}")
        return tensors[0]

    def _looked_up(self, codes: ir.Value, scale: ir.Value, suffix: str) -> ir.Value:
        # All inputs are constants: ONNX Runtime folds this when it loads the model.
        op = self._body.op
        index = op("Cast", codes, name=f"index_{suffix}", to=ir.DataType.INT32)
        point = op("Gather", self._points, index, name=f"point_{suffix}", axis=0)
        shape = op("Shape", index, name=f"depth_{suffix}", start=0, end=1)
        depth = op("Squeeze", shape, name=f"num_rows_{suffix}")
        row = op("Range", self._first_row, depth, self._next_row, name=f"row_{suffix}")
        group = op("Div", row, self._rows_of_group, name=f"group_{suffix}")
        of_row = op("Gather", scale, group, name=f"scale_of_row_{suffix}", axis=0)
        wide = op("Cast", of_row, name=f"wide_scale_{suffix}", to=ir.DataType.FLOAT)
        value = op("Mul", point, wide, name=f"value_{suffix}")
        return op("CastLike", value, self._x, name=f"dequantized_{suffix}")
