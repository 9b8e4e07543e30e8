"""Every way to execute a `RaggedMoE` node, behind one signature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from moe_export.op import spec
from moe_export.op.function import OPSET, ragged_moe_function
from moe_export.op.reference import ragged_moe
from tests.op.cases import Inputs

Executor = Callable[[Inputs], NDArray[Any]]


def one_node_model(inputs: Inputs, *, with_function: bool = True) -> onnx.ModelProto:
    """A model of one node, the experts being initializers and the number of tokens open."""
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
    names = spec.input_names(num_experts)[len(spec.INPUTS) :]
    tensors = [tensor for expert in inputs.experts for tensor in expert]
    for name, tensor in zip(names, tensors, strict=True):
        weight = value(name, dtype, list(tensor.shape))
        weight.const_value = ir.Tensor(tensor, name=name)
        weights.append(weight)
    node = ir.node(
        spec.NAME,
        [*graph_inputs, *weights],
        {"num_experts": num_experts, "activation": "swiglu", "format": inputs.x.dtype.name},
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
    functions = [ragged_moe_function(num_experts)] if with_function else []
    return ir.to_proto(ir.Model(graph, ir_version=10, functions=functions))


def feeds(inputs: Inputs) -> dict[str, NDArray[Any]]:
    """What the model's inputs are given."""
    return {
        "x": inputs.x,
        "expert_indices": inputs.expert_indices,
        "routing_weights": inputs.routing_weights,
    }


def session_of(model: onnx.ModelProto, *, optimize: bool) -> onnxruntime.InferenceSession:
    """A session of stock ONNX Runtime, no library registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _stock(inputs: Inputs, *, optimize: bool) -> NDArray[Any]:
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
    """The definition."""
    return ragged_moe(inputs.x, inputs.expert_indices, inputs.routing_weights, inputs.experts)
