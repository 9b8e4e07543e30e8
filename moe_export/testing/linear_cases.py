"""The table of cases that every executor of `Linear` must pass, and the executors.

Legend: K depth, N columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from moe_export.formats import FORMATS, QuantizedMatrix
from moe_export.op import spec
from moe_export.op.function import OPSET
from moe_export.op.linear import linear
from moe_export.op.linear_function import linear_function
from moe_export.op.packed_linear import LinearLayout, LinearPacker
from moe_export.op.reference import Weight, weight_values
from moe_export.testing.executors import session_of
from moe_export.testing.tolerance import activation_error


@dataclass(frozen=True)
class LinearCase:
    """Sizes of one call.

    Attributes:
        name: Name of the test.
        rows: Leading axes of x.
        depth: K.
        columns: N.
        bias: True with a bias.
    """

    name: str
    rows: tuple[int, ...]
    depth: int
    columns: int
    bias: bool = False


@dataclass(frozen=True)
class LinearInputs:
    """Arrays of one call."""

    x: NDArray[Any]
    weight: Weight
    bias: NDArray[Any] | None
    format_name: spec.Format
    group_size: int

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The node's stored inputs in order."""
        parts = self.weight.parts if isinstance(self.weight, QuantizedMatrix) else (self.weight,)
        return [*parts] if self.bias is None else [*parts, self.bias]


LINEAR_CASES = (
    LinearCase("one_row", (1, 1), 64, 128),
    LinearCase("no_rows", (0, 5), 40, 64),
    LinearCase("one_axis", (), 48, 70),
    LinearCase("three_axes_and_bias", (2, 3), 96, 100, bias=True),
    LinearCase("one_row_and_bias", (1, 1), 33, 65, bias=True),
    LinearCase("one_column", (7,), 130, 1, bias=True),
    LinearCase("one_depth", (7,), 1, 63),
    LinearCase("rows_of_several_tiles", (2, 20), 160, 192, bias=True),
    LinearCase("many_panels", (3,), 32, 1000),
)


def linear_inputs_of(
    case: LinearCase, dtype: str, format_name: spec.Format, group_size: int, seed: int = 21
) -> LinearInputs:
    """Arrays of a case, the same at every call; all values are of order one."""
    random = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> NDArray[Any]:
        return (random.standard_normal(shape) * scale).astype(dtype)

    values = normal(case.depth, case.columns, scale=case.depth**-0.5)
    matrix: Weight = values
    if format_name in spec.QUANTIZED_FORMATS:
        matrix = FORMATS[format_name](values, group_size, dtype)
    elif format_name == "bfloat16":
        matrix = values.astype(ml_dtypes.bfloat16)
    bias = normal(case.columns) if case.bias else None
    return LinearInputs(normal(*case.rows, case.depth), matrix, bias, format_name, group_size)


def linear_model(inputs: LinearInputs, *, with_function: bool = True) -> onnx.ModelProto:
    """A model of one node; the leading axes of x are free."""
    names = spec.linear_input_names(inputs.format_name, bias=inputs.bias is not None)
    weights = []
    for name, array in zip(names[1:], inputs.weights, strict=True):
        tensor = ir.Tensor(array, name=name)
        weight = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy())
        )
        weight.const_value = tensor
        weights.append(weight)
    attributes: dict[str, Any] = {"format": inputs.format_name}
    if inputs.format_name in spec.QUANTIZED_FORMATS:
        attributes["group_size"] = inputs.group_size
    function = linear_function(inputs.format_name, inputs.group_size, bias=inputs.bias is not None)
    return _one_node(
        inputs, spec.LINEAR_NAME, weights, attributes, [function] if with_function else []
    )


def packed_linear(library: Path, inputs: LinearInputs) -> NDArray[np.uint8]:
    """Bytes of the matrix and of its bias in the layout of `LinearPacked`, from a library."""
    depth, columns = inputs.weight.shape
    has_bias = inputs.bias is not None
    layout = LinearLayout(inputs.format_name, inputs.group_size, depth, columns, has_bias)
    parts = [np.frombuffer(layout.header(), np.uint8)]
    if inputs.bias is not None:
        parts.append(layout.bias(inputs.bias).view(np.uint8))
    parts.append(LinearPacker(layout, library).panels(inputs.weight, "the matrix"))
    tensor = np.concatenate(parts)
    assert tensor.nbytes == layout.total_bytes
    return tensor


def packed_linear_model(packed: NDArray[np.uint8], inputs: LinearInputs) -> onnx.ModelProto:
    """A model of one `LinearPacked` node."""
    weight = ir.Value(
        name="packed", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([packed.size])
    )
    weight.const_value = ir.Tensor(packed, name="packed")
    return _one_node(inputs, spec.LINEAR_PACKED_NAME, [weight], {}, [])


def _one_node(
    inputs: LinearInputs,
    kind: str,
    weights: list[ir.Value],
    attributes: dict[str, Any],
    functions: list[ir.Function],
) -> onnx.ModelProto:
    dtype = ir.TensorType(ir.DataType.from_numpy(inputs.x.dtype))
    leading = [f"axis_{axis}" for axis in range(inputs.x.ndim - 1)]
    x = ir.Value(name="x", type=dtype, shape=ir.Shape([*leading, inputs.x.shape[-1]]))
    node = ir.node(kind, [x, *weights], attributes, domain=spec.DOMAIN)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", dtype, ir.Shape([*leading, inputs.weight.shape[1]])
    graph = ir.Graph(
        [x],
        [y],
        nodes=[node],
        initializers=weights,
        opset_imports={"": OPSET, spec.DOMAIN: spec.VERSION},
        name="one_node",
    )
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=functions))


def run_linear_reference(inputs: LinearInputs) -> NDArray[Any]:
    """Output of the definition."""
    return linear(inputs.x, inputs.weight, inputs.bias)


def _stock(inputs: LinearInputs, *, optimize: bool) -> NDArray[Any]:
    session = session_of(linear_model(inputs), optimize=optimize)
    y: NDArray[Any] = session.run(None, {"x": inputs.x})[0]
    return y


def _onnx_reference(inputs: LinearInputs) -> NDArray[Any]:
    y: NDArray[Any] = ReferenceEvaluator(linear_model(inputs)).run(None, {"x": inputs.x})[0]
    return y


LINEAR_EXECUTORS: dict[str, Callable[[LinearInputs], NDArray[Any]]] = {
    "onnx_reference": _onnx_reference,
    "ort_function": lambda inputs: _stock(inputs, optimize=False),
    "ort_function_optimized": lambda inputs: _stock(inputs, optimize=True),
}


def linear_error_bound(inputs: LinearInputs, activation_block: int = 0) -> NDArray[np.float64]:
    """Largest error allowed in each element of y; see `moe_export.testing.tolerance`.

    Args:
        inputs: Arrays of the call.
        activation_block: Number of values of x that share a scale where they are rounded to int8,
            0 where they are not.
    """
    dtype = inputs.x.dtype
    values_KN = np.abs(weight_values(inputs.weight))
    unit = float(np.finfo(dtype).eps) / 2
    under = float(np.finfo(dtype).smallest_subnormal)
    depth = inputs.x.shape[-1]
    x = np.abs(inputs.x.astype(np.float64)).reshape(-1, depth)
    weight_unit = 0.0 if inputs.format_name == dtype.name else unit
    magnitude = x @ values_KN
    bound = (4 * float(np.sqrt(depth + 2)) * unit + weight_unit) * magnitude + under
    bound = bound + activation_error(x, activation_block) @ values_KN
    if inputs.bias is not None:
        bound = bound + 2 * unit * (magnitude + np.abs(inputs.bias.astype(np.float64)))
    error: NDArray[np.float64] = bound.reshape(*inputs.x.shape[:-1], values_KN.shape[1])
    return error
