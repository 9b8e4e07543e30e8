"""Builder of a graph: adds nodes and lazily read weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec, TensorSpec
from moe_export.families.features import UNITS_ROLE
from moe_export.formats import GRIDS
from moe_export.graph.latent_weight import LatentWeight
from moe_export.graph.packed_matrix import PackedMatrix
from moe_export.graph.packed_tensor import PackedTensor
from moe_export.graph.quantized import (
    linear_weight,
    lookup_weight,
    matmul_nbits_weight,
    ragged_moe_weight,
)
from moe_export.graph.units import UnitsTensor
from moe_export.graph.weights import CheckpointTensor, FloatDtype, Read, join_names
from moe_export.op import spec as op_spec
from moe_export.op.function import OPSET
from moe_export.op.packed_linear import HEADER, LinearLayout
from moe_export.op.spec import Dtype, Format, Layout, LinearWord
from moe_export.quantization import DENSE_ROLES, QuantizedFormat

ORT_DOMAIN = "com.microsoft"

CLASS_KEY = "tensor_class"
"""Key of a weight's `meta`: class that its bytes are counted in; absent for constants."""

OWNER_KEY = "owner_class"
"""Key of a weight's `meta`: its class; for scales, the class of the weights they belong to."""

SHARES_KEY = "shares"
"""Key of a packed weight's `meta`: its bytes by class, instead of one class for all of them."""

LAYER_KEY = "layer"
"""Key of a weight's `meta`: its layer; None for a weight outside the layers."""

SCALES = "scales"
"""Class of the scales and zero points of all quantized weights."""

EXPERT_BYTES_KEY = "expert_bytes"
"""Key of a packed weight's `meta`: bytes of its routed experts, scales included."""

CONSTANTS = "constants"
"""Class of initializers that are no weights, such as rotary tables, and of packed headers."""

INT8_ACTIVATIONS = 4
"""accuracy_level of MatMulNBits that lets it round activations to int8, as our kernels do."""

TOKENS_SHAPE = ("batch_size", "sequence_length")
"""Names of the first two axes of hidden states and logits."""

PANEL_ROLES = DENSE_ROLES | {"lm_head"}
"""Roles of the matrices that panels are made of. Routers and gates have too few columns."""

ALL_TOKENS = "tokens"
"""Name of the axis of all tokens of a batch."""

CHOSEN_AXES = {TOKENS_SHAPE[1]: "logits_length", ALL_TOKENS: "logits_tokens"}
"""Axes of all positions to those of the positions whose logits are computed."""

AttributeValue = int | float | str | Sequence[int]


class GraphBuilder:
    """Graph of one model under construction.

    Args:
        spec: Sizes of the model and names of its tensors.
        dtype: Dtype of activations and of all weights that are not quantized.
        read: Function that reads a tensor of the checkpoint by name.
        layout: Layout of the experts' weights.
        linear: Nodes of the matrices outside the experts.

    Attributes:
        linear_kinds: Format and presence of a bias, for all `Linear` nodes so far.
    """

    def __init__(
        self,
        spec: ModelSpec,
        dtype: Dtype,
        read: Read,
        layout: Layout = "portable",
        linear: LinearWord = "auto",
    ) -> None:
        self.spec = spec
        self.dtype = dtype
        self.layout = layout
        self.has_panels = op_spec.uses_panels(layout, linear)
        self.linear_kinds: dict[tuple[Format, bool], None] = {}
        self.float_type = ir.DataType.from_numpy(np.dtype(dtype))
        self._read = read
        self._axes: Mapping[str, str] = {}
        self._branch: ir.Graph | None = None
        self.graph = ir.Graph(
            [],
            [],
            nodes=[],
            opset_imports={"": OPSET, ORT_DOMAIN: 1, op_spec.DOMAIN: op_spec.VERSION},
            name="decoder",
        )

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """Adds an input to the graph."""
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.graph.inputs.append(value)
        return value

    def output(
        self,
        value: ir.Value,
        name: str,
        shape: Sequence[int | str],
        dtype: ir.DataType | None = None,
    ) -> None:
        """Makes a value an output of the graph, in the model's dtype if None is given."""
        value.name, value.shape = name, ir.Shape(shape)
        value.type = ir.TensorType(dtype or self.float_type)
        self.graph.outputs.append(value)

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        name: str,
        domain: str = "",
        overload: str = "",
        **attributes: AttributeValue,
    ) -> ir.Value:
        """Appends a node and returns its first output, which has the node's name."""
        return self.ops(
            kind, *inputs, name=name, num_outputs=1, domain=domain, overload=overload, **attributes
        )[0]

    def ops(
        self,
        kind: str,
        *inputs: ir.Value | None,
        name: str,
        num_outputs: int,
        domain: str = "",
        overload: str = "",
        **attributes: AttributeValue,
    ) -> Sequence[ir.Value]:
        """Appends a node and returns its outputs, named `name`, `name:1`, `name:2` and so on."""
        if kind == "Split" and len(inputs) == 1:
            attributes["num_outputs"] = num_outputs  # a Split into equal parts states it too
        node = ir.node(
            kind,
            list(inputs),
            attributes=attributes,
            domain=domain,
            overload=overload,
            num_outputs=num_outputs,
            name=name,
        )
        for number, output in enumerate(node.outputs):
            output.name = f"{name}:{number}" if number else name
        (self.graph if self._branch is None else self._branch).append(node)
        return node.outputs

    def either(
        self,
        condition: ir.Value,
        then: Callable[[], ir.Value],
        otherwise: Callable[[], ir.Value],
        name: str,
    ) -> ir.Value:
        """Value that one of two functions adds the nodes of; the other's nodes do not run.

        Args:
            condition: True, as [1] bool, for the first function.
            then: Function that adds nodes and returns the last one's output.
            otherwise: Function for the other case.
            name: Name of the node and its output.
        """
        branches = {"then_branch": self._nodes_of(then), "else_branch": self._nodes_of(otherwise)}
        node = ir.node("If", [condition], attributes=branches, name=name)
        node.outputs[0].name = name
        self.graph.append(node)
        return node.outputs[0]

    def _nodes_of(self, make: Callable[[], ir.Value]) -> ir.Graph:
        """Graph of the nodes that a function adds; their weights stay those of the whole model."""
        self._branch = branch = ir.Graph([], [], nodes=[], name=make.__name__)
        branch.outputs.append(make())
        self._branch = None
        return branch

    def describe(
        self, value: ir.Value, *shape: int | str, dtype: ir.DataType | None = None
    ) -> ir.Value:
        """States a shape that no standard rule infers, and the dtype: the model's if None."""
        named = [self._axes.get(axis, axis) if isinstance(axis, str) else axis for axis in shape]
        value.type, value.shape = ir.TensorType(dtype or self.float_type), ir.Shape(named)
        return value

    def rename_axes(self, axes: Mapping[str, str]) -> None:
        """Gives axes in later descriptions other names, since equal names mean equal lengths."""
        self._axes = axes

    def constant(self, name: str, values: NDArray[Any]) -> ir.Value:
        """Initializer with the given values; a second call with one name returns the first one."""
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        return self.initializer(ir.Tensor(values, name=name))

    def initializer(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Initializer that is no weight of the checkpoint, with the tensor's own name."""
        return self._register(tensor, {})

    def ints(self, *values: int) -> ir.Value:
        """Constant vector of int64, named after its values."""
        name = "ints_" + "_".join(map(str, values))
        return self.constant(name, np.array(values, dtype=np.int64))

    def weight(
        self,
        *roles: str,
        layer: int | None = None,
        expert: int | None = None,
        transpose: bool = False,
        dtype: FloatDtype | None = None,
        offset: float | None = None,
    ) -> ir.Value:
        """Initializer for one tensor of the checkpoint, or for several concatenated by rows.

        Its dtype is the model's unless another is given, and its values have the tensor's own
        offset unless another is given. It has the tensor's name in the
        checkpoint. Several tensors get their common prefix and then the parts that differ, as in
        `model.layers.0.self_attn.q_proj.weight+k_proj.weight+v_proj.weight`.
        """
        names = [self.spec.name(role, layer, expert) for role in roles]
        name = join_names(names)
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        specs = [self.spec.tensors[source] for source in names]
        shape = (sum(s.shape[0] for s in specs), *specs[0].shape[1:])
        tensor = CheckpointTensor(
            name,
            dtype or self.dtype,
            shape,
            names,
            self._read,
            transpose=transpose,
            offset=specs[0].offset if offset is None else offset,
        )
        return self._register(tensor, _meta(specs[0].tensor_class, layer))

    def expert_weight(
        self, role: str, layer: int, expert: int | None = None
    ) -> tuple[ir.Value, ...]:
        """Inputs of a `RaggedMoE` node for one matrix: the matrix, or its quantized parts."""
        format_name = self.spec.quantization.format_of(role, layer)
        if format_name is None:
            dtype = self.spec.quantization.float_of(role, layer)
            weight = self.weight(role, layer=layer, expert=expert, transpose=True, dtype=dtype)
            return (weight,)
        name = self.spec.name(role, layer, expert)
        parts = ragged_moe_weight(self.spec, name, format_name, self.dtype, self._read)
        return self._register_quantized(parts, self.spec.tensors[name].tensor_class, layer)

    def latent_weight(self, part: Literal["key", "value"], layer: int) -> ir.Value:
        """Keys' or values' part, per head, of the matrix that expands latent vectors."""
        source = self.spec.name("kv_expand", layer)
        if f"{source}.{part}" in self.graph.initializers:
            return self.graph.initializers[f"{source}.{part}"]
        tensor = LatentWeight(f"{source}.{part}", part, source, self.spec, self.dtype, self._read)
        return self._register(tensor, _meta(self.spec.tensors[source].tensor_class, layer))

    def packed_experts(self, layer: int, name: str) -> ir.Value:
        """Weight of a `RaggedMoEPacked` node, which holds all experts of a layer."""
        tensor = PackedTensor(name, self.spec, layer, self.dtype, self._read)
        layout, widths = tensor.layout, self.spec.widths[layer]
        scales = sum(map(layout.scale_bytes, layout.all_widths))
        routed = sum(map(layout.expert_bytes, widths))
        routed_codes = routed - sum(map(layout.scale_bytes, widths))
        shares = {
            "experts": routed_codes,
            "shared_expert": layout.total_bytes - layout.header_bytes - routed_codes - scales,
            SCALES: scales,
            CONSTANTS: layout.header_bytes,
        }
        meta = {SHARES_KEY: shares, EXPERT_BYTES_KEY: routed}
        return self._register(tensor, _meta("experts", layer) | meta)

    def units(self, layer: int) -> ir.Value:
        """Input `units` of a layer of pruned compressed experts."""
        tensor = UnitsTensor(self.spec, layer, self._read, self.layout)
        owner = self.spec.tensors[self.spec.name(UNITS_ROLE, layer)].tensor_class
        return self._register(tensor, _meta(owner, layer))

    def lookup(self, ids: ir.Value, name: str) -> ir.Value:
        """Looks up the embeddings of token ids."""
        if self.spec.quantization.format_of("embedding") is None:
            return self.op("Gather", self.weight("embedding"), ids, name=name)
        source = self.spec.name("embedding")
        parts = lookup_weight(self.spec, source, self.dtype, self._read)
        codes, scale = self._register_quantized(parts, self.spec.tensors[source].tensor_class, None)
        embeddings = self.op(
            "GatherBlockQuantized",
            codes,
            ids,
            scale,
            name=name,
            domain=ORT_DOMAIN,
            gather_axis=0,
            quantize_axis=1,
            block_size=self.spec.quantization.group_size,
            bits=GRIDS["int8"].storage_bits,
        )
        return self.describe(embeddings, *TOKENS_SHAPE, self.spec.hidden_size)

    def linear(
        self,
        x: ir.Value,
        *roles: str,
        name: str,
        layer: int | None = None,
        biased: bool = False,
    ) -> ir.Value:
        """Product of x with the weights of the roles side by side, plus biases if `biased`."""
        if self.has_panels and roles[0] in PANEL_ROLES:
            return self._panel_linear(x, roles, name, layer, biased=biased)
        if biased:
            product = self.linear(x, *roles, name=f"{name}_product", layer=layer)
            bias = self.weight(*(f"{role}_bias" for role in roles), layer=layer)
            return self.op("Add", product, bias, name=name)
        format_name = self.spec.quantization.format_of(roles[0], layer)
        if format_name is not None:
            return self._quantized_linear(x, roles, format_name, name, layer)
        return self.op("MatMul", x, self.weight(*roles, layer=layer, transpose=True), name=name)

    def _panel_linear(
        self, x: ir.Value, roles: Sequence[str], name: str, layer: int | None, *, biased: bool
    ) -> ir.Value:
        """`LinearPacked` node in the packed layout, else a `Linear` node."""
        sources = [self.spec.name(role, layer) for role in roles]
        first = self.spec.tensors[sources[0]]
        biases = [self.spec.name(f"{role}_bias", layer) for role in roles] if biased else []
        columns = sum(self.spec.tensors[source].shape[0] for source in sources)
        if self.layout == "packed":
            tensor = PackedMatrix(
                f"{name}.packed", self.spec, sources, biases, self.dtype, self._read
            )
            meta = _meta(first.tensor_class, layer) | {SHARES_KEY: _shares(tensor.layout, first)}
            y = self.op(
                op_spec.LINEAR_PACKED_NAME,
                x,
                self._register(tensor, meta),
                name=name,
                domain=op_spec.DOMAIN,
            )
            return self._describe_rows(y, x, columns)
        format_name = self.spec.quantization.format_of(roles[0], layer)
        if format_name is None:
            weights: tuple[ir.Value, ...] = (self.weight(*roles, layer=layer, transpose=True),)
        else:
            parts = linear_weight(
                self.spec, join_names(sources), sources, format_name, self.dtype, self._read
            )
            weights = self._register_quantized(parts, first.tensor_class, layer)
        if biased:
            weights += (self.weight(*(f"{role}_bias" for role in roles), layer=layer),)
        kind = (format_name or self.dtype, biased)
        self.linear_kinds[kind] = None
        groups = {"group_size": self.spec.quantization.group_size} if format_name else {}
        y = self.op(
            op_spec.LINEAR_NAME,
            x,
            *weights,
            name=name,
            domain=op_spec.DOMAIN,
            overload=linear_overload(*kind),
            format=kind[0],
            **groups,
        )
        return self._describe_rows(y, x, columns)

    def _describe_rows(self, y: ir.Value, x: ir.Value, columns: int) -> ir.Value:
        """States that y has the rows of x."""
        is_flat = x.shape is not None and len(x.shape) == 2
        return self.describe(y, *((ALL_TOKENS,) if is_flat else TOKENS_SHAPE), columns)

    def _quantized_linear(
        self,
        x: ir.Value,
        roles: Sequence[str],
        format_name: QuantizedFormat,
        name: str,
        layer: int | None,
    ) -> ir.Value:
        sources = [self.spec.name(role, layer) for role in roles]
        first = self.spec.tensors[sources[0]]
        parts = matmul_nbits_weight(
            self.spec, join_names(sources), sources, format_name, self.dtype, self._read
        )
        values = self._register_quantized(parts, first.tensor_class, layer)
        assert values[0].shape is not None
        columns = int(values[0].shape.numpy()[0])
        product = self.op(
            "MatMulNBits",
            x,
            *values,
            name=name,
            domain=ORT_DOMAIN,
            K=first.shape[1],
            N=columns,
            bits=GRIDS[format_name].storage_bits,
            block_size=self.spec.quantization.group_size,
            accuracy_level=INT8_ACTIVATIONS,
        )
        return self._describe_rows(product, x, columns)

    def _register_quantized(
        self,
        parts: Sequence[ir.TensorProtocol],
        tensor_class: str,
        layer: int | None,
    ) -> tuple[ir.Value, ...]:
        codes, *scales = parts
        meta = _meta(tensor_class, layer)
        return (
            self._register(codes, meta),
            *(self._register(scale, meta | {CLASS_KEY: SCALES}) for scale in scales),
        )

    def _register(self, tensor: ir.TensorProtocol, meta: Mapping[str, Any]) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        value.meta.update(meta)
        self.graph.register_initializer(value)
        return value


def linear_overload(format_name: Format, biased: bool) -> str:
    """Overload of the model's function for `Linear` nodes of one kind."""
    return f"{format_name}_bias" if biased else format_name


def _shares(layout: LinearLayout, tensor: TensorSpec) -> dict[str, int]:
    """Bytes of a packed matrix by class; those of the bias go with the codes."""
    codes = layout.total_bytes - HEADER.size - layout.scale_bytes
    return {tensor.tensor_class: codes, SCALES: layout.scale_bytes, CONSTANTS: HEADER.size}


def _meta(tensor_class: str, layer: int | None) -> dict[str, Any]:
    return {CLASS_KEY: tensor_class, OWNER_KEY: tensor_class, LAYER_KEY: layer}
