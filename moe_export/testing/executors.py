"""Functions that execute a `RaggedMoE` node, all with one signature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from moe_export.formats import QuantizedMatrix
from moe_export.op import spec
from moe_export.op.function import OPSET, ragged_moe_function
from moe_export.op.reference import Expert, Weight, ragged_moe
from moe_export.op.scales import TokenScales
from moe_export.testing.cases import Inputs

Executor = Callable[[Inputs], NDArray[Any]]


def one_node_model(inputs: Inputs, *, with_function: bool = True) -> onnx.ModelProto:
    """A model of one node: experts are initializers, the number of tokens is free."""
    dtype = ir.DataType.from_numpy(inputs.x.dtype)
    top_k, hidden = inputs.expert_indices.shape[1], inputs.x.shape[1]
    num_experts = len(inputs.experts)

    def value(name: str, kind: ir.DataType, shape: list[int | str]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(shape))

    graph_inputs = [
        value("x", dtype, ["T", hidden]),
        value("expert_indices", ir.DataType.INT64, ["T", top_k]),
        value("routing_weights", dtype, ["T", top_k]),
    ]
    weights = []
    has_shared = inputs.shared is not None
    names = spec.input_names(
        num_experts,
        inputs.format_name,
        shared_expert=has_shared,
        activation=inputs.activation,
        extra_inputs=list(inputs.extra_inputs),
    )
    if has_shared:
        graph_inputs.append(value(spec.SHARED_WEIGHT, dtype, ["T", 1]))
    for name, scale in inputs.extra_inputs.items():
        if name != "units":
            graph_inputs.append(value(name, dtype, ["T", scale.shape[1]]))
    constants = inputs.weights
    if "units" in inputs.extra_inputs:
        constants.insert(0, inputs.extra_inputs["units"])
    for name, tensor in zip(names[len(graph_inputs) :], constants, strict=True):
        weight = value(name, ir.DataType.from_numpy(tensor.dtype), list(tensor.shape))
        weight.const_value = ir.Tensor(tensor, name=name)
        weights.append(weight)
    attributes = {
        "num_experts": num_experts,
        "activation": inputs.activation,
        "format": inputs.format_name,
    }
    if inputs.format_name in spec.QUANTIZED_FORMATS:
        attributes["group_size"] = inputs.group_size
    if inputs.extra_inputs:
        attributes["extra_inputs"] = " ".join(inputs.extra_inputs)
    node = ir.node(
        spec.NAME,
        [*graph_inputs, *weights],
        attributes,
        domain=spec.DOMAIN,
    )
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(dtype), ir.Shape(["T", hidden])
    graph = ir.Graph(
        graph_inputs,
        [y],
        nodes=[node],
        initializers=weights,
        opset_imports={"": OPSET, spec.DOMAIN: spec.VERSION},
        name="one_node",
    )
    function = ragged_moe_function(
        num_experts,
        inputs.format_name,
        inputs.group_size,
        shared_expert=has_shared,
        activation=inputs.activation,
        extra_inputs=list(inputs.extra_inputs),
    )
    functions = [function] if with_function else []
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=functions))


def feeds(inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Arrays of the model's inputs, by name."""
    fed = {
        "x": inputs.x,
        "expert_indices": inputs.expert_indices,
        "routing_weights": inputs.routing_weights,
    }
    if inputs.shared_weight is not None:
        fed["shared_weight"] = inputs.shared_weight
    return fed | {name: scale for name, scale in inputs.extra_inputs.items() if name != "units"}


def session_of(model: onnx.ModelProto, *, optimize: bool) -> onnxruntime.InferenceSession:
    """A session of stock ONNX Runtime without the native library."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _at_least_one_unit(weight: Weight, *, is_down: bool) -> Weight:
    if not isinstance(weight, QuantizedMatrix) or weight.codes.size:
        return weight
    pad = ((0, 1), (0, 0)) if is_down else ((0, 0), (0, 1))

    def padded(array: NDArray[Any]) -> NDArray[Any]:
        return np.zeros(np.add(array.shape, (pad[0][1], pad[1][1])), array.dtype)

    return replace(
        weight,
        codes=padded(weight.codes),
        scale=np.pad(weight.scale, pad),
        zero_point=None if weight.zero_point is None else padded(weight.zero_point),
    )


def without_empty_experts(inputs: Inputs) -> Inputs:
    """Inputs with one hidden unit of zeros in each quantized expert of width 0.

    ONNX Runtime (seen in 1.32) does not create a session if it is to fuse DequantizeLinear and
    MatMul of a matrix without elements into MatMulNBits, so exported models are padded this way.
    """

    def filled(expert: Expert) -> Expert:
        *factors, down = expert
        return (
            *(_at_least_one_unit(factor, is_down=False) for factor in factors),
            _at_least_one_unit(down, is_down=True),
        )

    experts = tuple(filled(expert) for expert in inputs.experts)
    return replace(
        inputs,
        experts=experts,
        scales=_with_units_of(inputs, experts),
        shared=None if inputs.shared is None else filled(inputs.shared),
    )


def _with_units_of(inputs: Inputs, filled: Sequence[Expert]) -> TokenScales | None:
    """Scales in which the added hidden units of zeros have unit 0."""
    if inputs.scales is None or inputs.scales.units is None:
        return inputs.scales
    widths = [expert[-1].shape[0] for expert in inputs.experts]
    blocks = np.split(inputs.scales.units, np.cumsum(widths)[:-1])
    units = [
        np.pad(block, (0, expert[-1].shape[0] - len(block)))
        for block, expert in zip(blocks, filled, strict=True)
    ]
    return replace(inputs.scales, units=np.concatenate(units))


def _stock(inputs: Inputs, *, optimize: bool) -> NDArray[Any]:
    if optimize:
        inputs = without_empty_experts(inputs)
    session = session_of(one_node_model(inputs), optimize=optimize)
    result: NDArray[Any] = session.run(None, feeds(inputs))[0]
    return result


def _onnx_reference(inputs: Inputs) -> NDArray[Any]:
    result: NDArray[Any] = ReferenceEvaluator(one_node_model(inputs)).run(None, feeds(inputs))[0]
    return result


EXECUTORS: dict[str, Executor] = {
    "onnx_reference": _onnx_reference,
    "ort_function": lambda inputs: _stock(inputs, optimize=False),
    "ort_function_optimized": lambda inputs: _stock(inputs, optimize=True),
}


def run_reference(inputs: Inputs) -> NDArray[Any]:
    """Output of the definition, y [T, D]."""
    return ragged_moe(
        inputs.x,
        inputs.expert_indices,
        inputs.routing_weights,
        inputs.experts,
        inputs.shared,
        inputs.shared_weight,
        inputs.activation,
        inputs.scales,
    )
