"""One layer as a node with random weights: ours, and ONNX Runtime's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.op import spec
from moe_export.op.packed import PackedLayout
from moe_export.testing import layer_sizes as sizes


@dataclass(frozen=True)
class Node:
    """A node: the first `before` inputs of the model, then `weights`, then the other inputs."""

    kind: str
    domain: str
    weights: list[ir.Value | None]
    before: int
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One of our layers.

    Attributes:
        format_name: Format of the weights.
        x_dtype: Dtype of x.
        group_size: Depths that share a scale.
        shared: True if it has a shared expert.
        top_k: Experts per token.
        factors: Inputs with factors per token, of `spec.SCALE_INPUTS`.
    """

    format_name: Any
    x_dtype: str
    group_size: int
    shared: bool
    top_k: int = sizes.TOP_K
    factors: tuple[str, ...] = ()

    @property
    def scales(self) -> dict[str, int]:
        """Columns of the factors by name, in the operator's order."""
        return {
            name: sizes.FULL_WIDTH if name == "hidden_scale" else sizes.HIDDEN
            for name in self.factors
        }

    @property
    def extra(self) -> dict[str, Any]:
        """Attribute that names the factors, if there are any."""
        return {"extra_inputs": " ".join(self.factors)} if self.factors else {}


def value(name: str, dtype: ir.DataType, shape: list[Any]) -> ir.Value:
    """A value of the graph with its type and shape."""
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


class Weights:
    """Initializers cut from one stretch of random numbers; drawing all would take minutes."""

    def __init__(self, random: np.random.Generator) -> None:
        self._normal = (random.standard_normal(1 << 20) * 0.02).astype(np.float32)
        self._codes = random.integers(-7, 8, 1 << 20).astype(np.int8)
        self._made: dict[tuple[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = {}
        self.values: list[ir.Value] = []

    def add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> ir.Value:
        """Adds an initializer of random values; initializers of one shape share their array."""
        if (shape, dtype) in self._made:
            return self.keep(name, self._made[shape, dtype])
        source: NDArray[Any] = self._codes if dtype.name in ("int8", "int4") else self._normal
        if dtype.name in ("uint8", "uint4"):
            source = self._codes.view(np.uint8) & np.uint8(255 if dtype.name == "uint8" else 15)
        # Cast before it is repeated, which is less work.
        self._made[shape, dtype] = np.resize(source.astype(dtype), shape)
        return self.keep(name, self._made[shape, dtype])

    def panels(self, format_name: str) -> NDArray[np.uint8]:
        """Panels of 64 columns in the kernels' layout."""
        if format_name not in spec.QUANTIZED_FORMATS:
            return self._normal.astype(sizes.NUMPY[format_name]).view(np.uint8)
        # Zero points, where there are any, and codes.
        other_bytes = int(sizes.WEIGHT_BITS[format_name] * 32 * 64 // 8) - 128
        blocks = np.resize(self._codes.view(np.uint8), (512, other_bytes))
        scales = np.full((512, 64), 2.0**-8, np.float16).view(np.uint8)
        return np.concatenate([scales, blocks], axis=1).reshape(-1)

    def keep(self, name: str, array: NDArray[Any]) -> ir.Value:
        """Adds an array as an initializer."""
        made = value(name, ir.DataType.from_numpy(array.dtype), list(array.shape))
        made.const_value = ir.Tensor(array, name=name)
        self.values.append(made)
        return made


def ragged_inputs(kind: Kind) -> list[ir.Value]:
    """Inputs of a model of our layers."""
    dtype = ir.DataType.from_numpy(sizes.NUMPY[kind.x_dtype])
    inputs = [
        value("x", dtype, ["T", sizes.HIDDEN]),
        value("expert_indices", ir.DataType.INT64, ["T", kind.top_k]),
        value("routing_weights", dtype, ["T", kind.top_k]),
    ]
    if kind.shared:
        inputs.append(value("shared_weight", dtype, ["T", 1]))
    return inputs + [value(name, dtype, ["T", size]) for name, size in kind.scales.items()]


def padded_inputs(x_dtype: str) -> list[ir.Value]:
    """Inputs of a model of ONNX Runtime's layers, which choose the experts from scores."""
    dtype = ir.DataType.from_numpy(sizes.NUMPY[x_dtype])
    return [value("x", dtype, ["T", sizes.HIDDEN]), value("scores", dtype, ["T", sizes.EXPERTS])]


def ragged(kind: Kind, widths: NDArray[np.int64], weights: Weights, layer: int) -> Node:
    """A `RaggedMoE` node."""
    format_name = kind.format_name
    names = spec.input_names(sizes.EXPERTS, format_name, shared_expert=kind.shared)
    quantized = format_name in spec.QUANTIZED_FORMATS
    per_expert = len(spec.EXPERT_INPUTS) * len(spec.weight_parts(format_name))
    all_widths = [*widths, sizes.SHARED_WIDTH]
    values: list[ir.Value | None] = []
    for position, name in enumerate(names[len(spec.INPUTS) + kind.shared :]):
        width = int(all_widths[position // per_expert])
        depth, columns = (width, sizes.HIDDEN) if "down" in name else (sizes.HIDDEN, width)
        groups = -(-depth // kind.group_size)
        if "scale" in name:
            scale = np.full((groups, columns), 2.0**-8, sizes.NUMPY[kind.x_dtype])
            values.append(weights.keep(f"{layer}.{name}", scale))
            continue
        shape = (groups if "zero_point" in name else depth, columns)
        values.append(weights.add(f"{layer}.{name}", shape, sizes.NUMPY[format_name]))
    attributes: dict[str, Any] = {
        "num_experts": sizes.EXPERTS,
        "activation": "swiglu",
        "format": format_name,
    }
    if quantized:
        attributes["group_size"] = kind.group_size
    before = len(spec.INPUTS) + kind.shared + len(kind.scales)
    return Node(spec.NAME, spec.DOMAIN, values, before, attributes | kind.extra)


def packed(kind: Kind, widths: NDArray[np.int64], weights: Weights, layer: int) -> Node:
    """A `RaggedMoEPacked` node."""
    layout = PackedLayout(
        kind.format_name,
        kind.group_size if kind.format_name in spec.QUANTIZED_FORMATS else 0,
        sizes.HIDDEN,
        tuple(map(int, widths)),
        sizes.SHARED_WIDTH if kind.shared else None,
    )
    # Any bytes are panels; those of random floats make no infinities.
    source = weights.panels(kind.format_name)
    panels = np.resize(source, layout.total_bytes - layout.header_bytes)
    tensor = np.concatenate([np.frombuffer(layout.header(), np.uint8), panels])
    packed = weights.keep(f"{layer}.packed", tensor)
    return Node(spec.PACKED_NAME, spec.DOMAIN, [packed], len(spec.INPUTS), kind.extra)


def qmoe(weights: Weights, layer: int, dtype: np.dtype[Any], block_size: int) -> Node:
    """ONNX Runtime's `QMoE` in int4, all experts at the full width."""

    def quantized(name: str, rows: int, depth: int) -> list[ir.Value]:
        scale = np.full((sizes.EXPERTS, rows, depth // block_size), 2.0**-8, dtype)
        shape = (sizes.EXPERTS, rows, depth // 2)
        codes = weights.add(f"{layer}.{name}", shape, np.dtype(np.uint8))
        return [codes, weights.keep(f"{layer}.{name}_scale", scale)]

    first = quantized("fc1", 2 * sizes.FULL_WIDTH, sizes.HIDDEN)
    second = quantized("fc2", sizes.HIDDEN, sizes.FULL_WIDTH)
    attributes = {
        "k": sizes.TOP_K,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
        "expert_weight_bits": 4,
        "block_size": block_size,
        "accuracy_level": 4,
        "weights_prepacked": 0,
    }
    return Node("QMoE", "com.microsoft", [*first, None, *second, None], 2, attributes)


def moe(weights: Weights, layer: int, dtype: np.dtype[Any]) -> Node:
    """ONNX Runtime's `MoE`, all experts at the full width."""
    first = weights.add(f"{layer}.fc1", (sizes.EXPERTS, 2 * sizes.FULL_WIDTH, sizes.HIDDEN), dtype)
    second = weights.add(f"{layer}.fc2", (sizes.EXPERTS, sizes.HIDDEN, sizes.FULL_WIDTH), dtype)
    attributes = {
        "k": sizes.TOP_K,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "normalize_routing_weights": 1,
    }
    return Node("MoE", "com.microsoft", [first, None, second, None], 2, attributes)
