"""Models of a few MoE layers for the benchmark, with random weights in an external file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.formats import GRIDS
from moe_export.op import spec
from moe_export.op.function import OPSET, ragged_moe_function
from moe_export.op.packed import PackedLayout

HIDDEN, EXPERTS, TOP_K, FULL_WIDTH, MEAN_WIDTH, SHARED_WIDTH = 2048, 60, 4, 1408, 704, 5632
GROUP = 32
SHAPES = {
    "hidden": HIDDEN,
    "experts": EXPERTS,
    "top_k": TOP_K,
    "full_width": FULL_WIDTH,
    "mean_width": MEAN_WIDTH,
    "shared_width": SHARED_WIDTH,
}

ALL = [
    *(f"ragged_{name}" for name in spec.FORMATS),
    *(f"packed_{name}" for name in spec.FORMATS),
    "ragged_int4_shared",
    "packed_int4_shared",
    "packed_int4_uniform",
    "body_int4",
    "qmoe_int4_padded",
    "moe_float32_padded",
    "ggml_q4_0",
    "ggml_q4_0_dense_shared",
]
DEFAULT = ["ragged_int4", "ragged_int8", "body_int4", "qmoe_int4_padded"]

GGML = {"ggml_q4_0": (MEAN_WIDTH, 0), "ggml_q4_0_dense_shared": (FULL_WIDTH, SHARED_WIDTH)}
"""Width of the experts and of the shared one in layers that llama.cpp's ggml runs."""

WEIGHT_BITS = {
    name: PackedLayout(name, GROUP, HIDDEN, ()).expert_bytes(MEAN_WIDTH)
    / (3 * HIDDEN * MEAN_WIDTH / 8)
    for name in spec.FORMATS
}
"""What our kernels read for a weight, its share of scales and zero points included."""

NUMPY = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: grid.code_dtype for name, grid in GRIDS.items()},
}


def skewed_widths(random: np.random.Generator) -> NDArray[np.int64]:
    """Multiples of 32 from 32 to the full width, many near both ends, with the mean exact."""
    steps = FULL_WIDTH // 32
    widths = np.rint(random.beta(0.9, 0.9, EXPERTS) * steps).astype(np.int64).clip(1, steps)
    while (excess := int(widths.sum()) - MEAN_WIDTH // 32 * EXPERTS) != 0:
        expert = random.integers(EXPERTS)
        widths[expert] = np.clip(widths[expert] - np.sign(excess), 1, steps)
    return widths * 32


def parts(name: str, widths: NDArray[np.int64]) -> tuple[NDArray[np.int64], str, bool]:
    """The candidate's widths, the format of its weights, and whether it has a shared expert."""
    if name in GGML:
        width, shared_width = GGML[name]
        return np.full(EXPERTS, width), "int4", shared_width > 0
    shared = name.endswith("_shared")
    if name.endswith("_uniform"):
        widths = np.full(EXPERTS, MEAN_WIDTH)
    stem = name.removesuffix("_shared").removesuffix("_uniform")
    return widths, stem.rsplit("_", maxsplit=1)[-1], shared


def moved_bytes(name: str, widths: NDArray[np.int64], chosen: NDArray[np.int64] | None) -> int:
    """What the candidate reads for the chosen experts; as for one average token if None."""
    widths, format_name, shared = parts(name, widths)
    count = TOP_K if chosen is None else len(chosen)
    if name == "qmoe_int4_padded":
        return int(count * FULL_WIDTH * 3 * HIDDEN * 5 / 8)
    if name == "moe_float32_padded":
        return count * FULL_WIDTH * 3 * HIDDEN * 4
    total = TOP_K * float(widths.mean()) if chosen is None else float(widths[chosen].sum())
    total += SHARED_WIDTH if shared else 0
    bits = 5 if name.startswith("body") else WEIGHT_BITS[format_name]
    return int(total * 3 * HIDDEN * bits / 8)


def feeds(
    name: str, tokens: int, random: np.random.Generator, x_dtype: str = "float32"
) -> dict[str, NDArray[Any]]:
    """Random tokens that choose distinct experts, each as likely as the others."""
    x = random.standard_normal((tokens, HIDDEN), np.float32)
    if name.endswith("_padded"):
        # The same kind of choice, made by the operator from scores.
        scores = random.standard_normal((tokens, EXPERTS), np.float32)
        return {"x": x.astype(NUMPY[x_dtype]), "scores": scores.astype(NUMPY[x_dtype])}
    order = random.random((tokens, EXPERTS)).argsort(axis=1)
    fed: dict[str, NDArray[Any]] = {
        "x": x,
        "expert_indices": order[:, :TOP_K].astype(np.int64),
        "routing_weights": random.random((tokens, TOP_K), np.float32),
    }
    if name == "ragged_float16" or x_dtype == "float16":
        fed |= {key: fed[key].astype(np.float16) for key in ("x", "routing_weights")}
    if name.endswith("_shared"):
        fed["shared_weight"] = random.random((tokens, 1), np.float32)
    return fed


def build(
    name: str,
    widths: NDArray[np.int64],
    layers: int,
    folder: Path,
    random: np.random.Generator,
    *,
    x_dtype: str = "float32",
    group_size: int = GROUP,
) -> tuple[Path, int]:
    """The model's file and the bytes of its weights.

    The layers all take the model's inputs and each gives an output, so that they differ in nothing
    but their weights.
    """
    folder.mkdir()
    weights = _Weights(random)
    if name == "qmoe_int4_padded":
        inputs = _padded_inputs(x_dtype)
        nodes = [_qmoe(weights, layer, NUMPY[x_dtype], group_size) for layer in range(layers)]
    elif name.endswith("_padded"):
        inputs = _padded_inputs(x_dtype)
        nodes = [_moe(weights, layer, NUMPY[x_dtype]) for layer in range(layers)]
    else:
        widths, format_name, shared = parts(name, widths)
        x_dtype = "float16" if format_name == "float16" else x_dtype
        kind = _Kind(format_name, x_dtype, group_size, shared)
        layer_of = _packed if name.startswith("packed") else _ragged
        inputs = _ragged_inputs(kind)
        nodes = [layer_of(kind, widths, weights, layer) for layer in range(layers)]
    functions = []
    if name.startswith("body"):
        functions = [ragged_moe_function(EXPERTS, format_name, group_size, shared_expert=shared)]
    model = _model(inputs, nodes, weights, functions)
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx", (folder / "model.onnx.data").stat().st_size


@dataclass(frozen=True)
class _Node:
    """A node whose inputs are those of the model with `weights` after the first `before`."""

    kind: str
    domain: str
    weights: list[ir.Value | None]
    before: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class _Kind:
    """Of a layer of ours."""

    format_name: Any
    x_dtype: str
    group_size: int
    shared: bool


def _value(name: str, dtype: ir.DataType, shape: list[Any]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


class _Weights:
    """Initializers cut out of a stretch of random numbers: making all anew would take minutes."""

    def __init__(self, random: np.random.Generator) -> None:
        self._normal = (random.standard_normal(1 << 20) * 0.02).astype(np.float32)
        self._codes = random.integers(-7, 8, 1 << 20).astype(np.int8)
        self._made: dict[tuple[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = {}
        self.values: list[ir.Value] = []

    def add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ir.Value:
        if (shape, dtype) in self._made:
            return self.keep(name, self._made[shape, dtype])
        source = self._codes if dtype.name in ("int8", "int4") else self._normal
        if dtype.name in ("uint8", "uint4"):
            source = self._codes.view(np.uint8) & np.uint8(255 if dtype.name == "uint8" else 15)
        # Cast before it is repeated, which is less work.
        self._made[shape, dtype] = np.resize(source.astype(dtype), shape)
        return self.keep(name, self._made[shape, dtype])

    def panels(self, format_name: str) -> NDArray[np.uint8]:
        """Panels of 64 columns in the kernels' layout."""
        if format_name not in spec.QUANTIZED_FORMATS:
            return self._normal.astype(NUMPY[format_name]).view(np.uint8)
        # Zero points, where there are any, and codes.
        other_bytes = int(WEIGHT_BITS[format_name] * 32 * 64 // 8) - 128
        blocks = np.resize(self._codes.view(np.uint8), (512, other_bytes))
        scales = np.full((512, 64), 2.0**-8, np.float16).view(np.uint8)
        return np.concatenate([scales, blocks], axis=1).reshape(-1)

    def keep(self, name: str, array: NDArray[Any]) -> ir.Value:
        value = _value(name, ir.DataType.from_numpy(array.dtype), list(array.shape))
        value.const_value = ir.Tensor(array, name=name)
        self.values.append(value)
        return value


def _ragged_inputs(kind: _Kind) -> list[ir.Value]:
    dtype = ir.DataType.from_numpy(NUMPY[kind.x_dtype])
    inputs = [
        _value("x", dtype, ["T", HIDDEN]),
        _value("expert_indices", ir.DataType.INT64, ["T", TOP_K]),
        _value("routing_weights", dtype, ["T", TOP_K]),
    ]
    return [*inputs, _value("shared_weight", dtype, ["T", 1])] if kind.shared else inputs


def _padded_inputs(x_dtype: str) -> list[ir.Value]:
    dtype = ir.DataType.from_numpy(NUMPY[x_dtype])
    return [_value("x", dtype, ["T", HIDDEN]), _value("scores", dtype, ["T", EXPERTS])]


def _ragged(kind: _Kind, widths: NDArray[np.int64], weights: _Weights, layer: int) -> _Node:
    format_name = kind.format_name
    names = spec.input_names(EXPERTS, format_name, shared_expert=kind.shared)
    quantized = format_name in spec.QUANTIZED_FORMATS
    per_expert = len(spec.EXPERT_INPUTS) * len(spec.weight_parts(format_name))
    all_widths = [*widths, SHARED_WIDTH]
    values: list[ir.Value | None] = []
    for position, name in enumerate(names[len(spec.INPUTS) + kind.shared :]):
        width = int(all_widths[position // per_expert])
        depth, columns = (width, HIDDEN) if "down" in name else (HIDDEN, width)
        groups = -(-depth // kind.group_size)
        if "scale" in name:
            scale = np.full((groups, columns), 2.0**-8, NUMPY[kind.x_dtype])
            values.append(weights.keep(f"{layer}.{name}", scale))
            continue
        shape = (groups if "zero_point" in name else depth, columns)
        values.append(weights.add(f"{layer}.{name}", shape, NUMPY[format_name]))
    attributes: dict[str, Any] = {
        "num_experts": EXPERTS,
        "activation": "swiglu",
        "format": format_name,
    }
    if quantized:
        attributes["group_size"] = kind.group_size
    return _Node(spec.NAME, spec.DOMAIN, values, len(spec.INPUTS) + kind.shared, attributes)


def _packed(kind: _Kind, widths: NDArray[np.int64], weights: _Weights, layer: int) -> _Node:
    layout = PackedLayout(
        kind.format_name,
        kind.group_size if kind.format_name in spec.QUANTIZED_FORMATS else 0,
        HIDDEN,
        tuple(map(int, widths)),
        SHARED_WIDTH if kind.shared else None,
    )
    # Any bytes are panels; those of random floats make no infinities.
    source = weights.panels(kind.format_name)
    panels = np.resize(source, layout.total_bytes - layout.header_bytes)
    tensor = np.concatenate([np.frombuffer(layout.header(), np.uint8), panels])
    packed = weights.keep(f"{layer}.packed", tensor)
    return _Node(spec.PACKED_NAME, spec.DOMAIN, [packed], len(spec.INPUTS), {})


def _qmoe(weights: _Weights, layer: int, dtype: np.dtype[Any], block_size: int) -> _Node:
    def quantized(name: str, rows: int, depth: int) -> list[ir.Value]:
        scale = np.full((EXPERTS, rows, depth // block_size), 2.0**-8, dtype)
        shape = (EXPERTS, rows, depth // 2)
        codes = weights.add(f"{layer}.{name}", shape, np.dtype(np.uint8))
        return [codes, weights.keep(f"{layer}.{name}_scale", scale)]

    first = quantized("fc1", 2 * FULL_WIDTH, HIDDEN)
    second = quantized("fc2", HIDDEN, FULL_WIDTH)
    attributes = {
        "k": TOP_K,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
        "expert_weight_bits": 4,
        "block_size": block_size,
        "accuracy_level": 4,
        "weights_prepacked": 0,
    }
    return _Node("QMoE", "com.microsoft", [*first, None, *second, None], 2, attributes)


def _moe(weights: _Weights, layer: int, dtype: np.dtype[Any]) -> _Node:
    first = weights.add(f"{layer}.fc1", (EXPERTS, 2 * FULL_WIDTH, HIDDEN), dtype)
    second = weights.add(f"{layer}.fc2", (EXPERTS, HIDDEN, FULL_WIDTH), dtype)
    attributes = {
        "k": TOP_K,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
    }
    return _Node("MoE", "com.microsoft", [first, None, second, None], 2, attributes)


def _model(
    inputs: list[ir.Value],
    nodes: list[_Node],
    weights: _Weights,
    functions: list[ir.Function],
) -> ir.Model:
    made = []
    for layer, node in enumerate(nodes):
        node_inputs = [*inputs[: node.before], *node.weights, *inputs[node.before :]]
        made.append(ir.node(node.kind, node_inputs, node.attributes, domain=node.domain))
        y = made[-1].outputs[0]
        y.name, y.type, y.shape = f"y_{layer}", inputs[0].type, ir.Shape(["T", HIDDEN])
    graph = ir.Graph(
        inputs,
        [node.outputs[0] for node in made],
        nodes=made,
        initializers=weights.values,
        opset_imports={"": OPSET, nodes[0].domain: 1},
        name="layers",
    )
    return ir.Model(graph, ir_version=10, functions=functions)
