"""Two more ways to execute a `RaggedMoE` node: the library in ONNX Runtime, and by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray

from moe_export.formats import GRIDS, known_to
from moe_export.op import spec
from moe_export.op.function import OPSET
from moe_export.op.library import library_path, register
from moe_export.op.packed import PackedLayout, Packer
from moe_export.op.reference import Expert, Weight
from moe_export.testing.c_library import CLayer, available_kernels
from moe_export.testing.cases import TIED, Case, Inputs, Kind, kinds_of, scales_of, weight_of
from moe_export.testing.executors import feeds, one_node_model

NATIVE_FORMATS = known_to("native")
"""Formats that the library's kernels run."""

NATIVE_QUANTIZED = tuple(name for name in NATIVE_FORMATS if name in GRIDS)
"""Formats of codes that the library's kernels run."""

INT32 = ir.DataType.INT32

NATIVE_KINDS = kinds_of(NATIVE_FORMATS)

KERNELS = available_kernels(library_path())[::-1]
"""Kernels that run on this processor, from plain to fast; the installed library says which."""

FASTEST = KERNELS[-1]


def native_session(
    library: Path, model: onnx.ModelProto, num_threads: int = 2
) -> onnxruntime.InferenceSession:
    """A session with the library registered."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    register(options, library)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_in_onnx_runtime(library: Path, inputs: Inputs) -> NDArray[Any]:
    """Output of the library in ONNX Runtime, in a model that has the function too."""
    y: NDArray[Any] = native_session(library, one_node_model(inputs)).run(None, feeds(inputs))[0]
    return y


def layer_of(
    library: Path, inputs: Inputs, kernel: str | None = None, *, exact_activations: bool = False
) -> CLayer:
    """The experts of `inputs`, packed."""
    return CLayer(
        library,
        inputs.weights,
        num_experts=len(inputs.experts),
        format_name=inputs.format_name,
        x_dtype=inputs.x.dtype.name,
        group_size=inputs.group_size,
        activation=inputs.activation,
        units=inputs.extra_inputs.get("units"),
        kernel=kernel,
        exact_activations=exact_activations,
    )


def run_kernel(
    library: Path,
    inputs: Inputs,
    kernel: str | None = None,
    num_threads: int = 1,
    *,
    exact_activations: bool = False,
) -> NDArray[Any]:
    """Output of one kernel of the library, without ONNX Runtime."""
    return layer_of(library, inputs, kernel, exact_activations=exact_activations).run(
        inputs.x,
        inputs.expert_indices,
        inputs.routing_weights,
        inputs.shared_weight,
        scales=inputs.extra_inputs,
        num_threads=num_threads,
    )


def random_inputs(random: np.random.Generator, kind: Kind) -> Inputs:
    """Inputs of random sizes, widths and routing."""
    dtype, format_name, group_size = kind
    num_experts, hidden = int(random.integers(1, 6)), int(random.integers(1, 140))
    tokens, top_k = int(random.integers(0, 20)), int(random.integers(1, num_experts + 1))

    activation = spec.ACTIVATIONS[int(random.integers(0, len(spec.ACTIVATIONS)))]

    def normal(*shape: int, scale: float = 1) -> NDArray[Any]:
        return (random.standard_normal(shape) * scale).astype(dtype)

    def weight(rows: int, columns: int, scale: float) -> Weight:
        return weight_of(normal(rows, columns, scale=scale), format_name, group_size, dtype)

    def expert(width: int) -> Expert:
        across, back = hidden**-0.5, max(width, 1) ** -0.5
        into = len(spec.expert_inputs(activation)) - 1
        return (
            *(weight(hidden, width, across) for _ in range(into)),
            weight(width, hidden, back),
        )

    widths = random.integers(0, 100, num_experts) * random.integers(0, 2, num_experts)
    has_shared = bool(random.integers(0, 2))
    forms: tuple[tuple[str, ...], ...] = ((), (), TIED[:1], TIED, (*TIED, "units"))
    case = Case("scales", tuple(map(int, widths)), tokens, top_k, hidden)
    case = replace(case, scales=forms[int(random.integers(0, len(forms)))])
    return Inputs(
        normal(tokens, hidden),
        random.integers(0, num_experts, (tokens, top_k)),
        normal(tokens, top_k),
        tuple(expert(width) for width in widths),
        expert(int(random.integers(0, 100))) if has_shared else None,
        normal(tokens, 1) if has_shared else None,
        format_name,
        group_size,
        activation,
        scales_of(random, case, dtype) if case.scales else None,
    )


def layout_of(inputs: Inputs) -> PackedLayout:
    """Layout of the packed layer that holds the weights of the inputs."""
    return PackedLayout(
        inputs.format_name,
        inputs.group_size,
        inputs.x.shape[1],
        tuple(expert[-1].shape[0] for expert in inputs.experts),
        None if inputs.shared is None else inputs.shared[-1].shape[0],
        inputs.activation,
    )


def packed(library: Path, inputs: Inputs) -> NDArray[np.uint8]:
    """The experts of the inputs as the tensor of a `RaggedMoEPacked` node."""
    layout = layout_of(inputs)
    packer = Packer(layout, library)
    each = len(inputs.weights) // len(layout.all_widths)
    parts = [np.frombuffer(layout.header(), np.uint8)]
    for number, width in enumerate(layout.all_widths):
        weights = inputs.weights[each * number : each * (number + 1)]
        parts.append(packer.expert(weights, width, f"expert {number}"))
    return np.concatenate(parts)


def packed_model(tensor: NDArray[np.uint8], inputs: Inputs) -> ir.Model:
    """A model of one `RaggedMoEPacked` node."""
    dtype = ir.DataType.from_numpy(inputs.x.dtype)
    top_k, hidden = inputs.expert_indices.shape[1], inputs.x.shape[1]
    sizes: dict[str, tuple[ir.DataType, list[int | str]]] = {
        "x": (dtype, ["T", hidden]),
        "expert_indices": (ir.DataType.INT64, ["T", top_k]),
        "routing_weights": (dtype, ["T", top_k]),
        "packed": (ir.DataType.UINT8, [tensor.size]),
        "shared_weight": (dtype, ["T", 1]),
    }
    names = [*spec.PACKED_INPUTS[: 4 if inputs.shared is None else 5], *inputs.extra_inputs]
    for name, scale in inputs.extra_inputs.items():
        sizes[name] = (dtype, ["T", scale.shape[1]]) if name != "units" else (INT32, [scale.size])
    values = {
        name: ir.Value(
            name=name, type=ir.TensorType(sizes[name][0]), shape=ir.Shape(sizes[name][1])
        )
        for name in names
    }
    constants = {name: array for name, array in inputs.extra_inputs.items() if name == "units"}
    constants["packed"] = tensor
    for name, array in constants.items():
        values[name].const_value = ir.Tensor(array, name=name)
    attributes = {"extra_inputs": " ".join(inputs.extra_inputs)} if inputs.extra_inputs else {}
    node = ir.node(spec.PACKED_NAME, list(values.values()), attributes, domain=spec.DOMAIN)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(dtype), ir.Shape(["T", hidden])
    graph = ir.Graph(
        [value for name, value in values.items() if name not in constants],
        [y],
        nodes=[node],
        initializers=[values[name] for name in constants],
        opset_imports={"": OPSET, spec.DOMAIN: spec.VERSION},
        name="one_node",
    )
    return ir.Model(graph, ir_version=10)
