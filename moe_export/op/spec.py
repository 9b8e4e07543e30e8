"""The forms of the operators' nodes: names, order and dtypes as plain data.

The meaning is in `moe_export.op.reference`; the graph builder, the function body and the native
library take their names from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from moe_export.formats import TABLE

DOMAIN = "moe_export"
NAME = "RaggedMoE"
VERSION = 1
"""Opset version of the domain; raised when a node of the old form would mean something else."""

Dtype = Literal["float32", "float16"]
"""Dtypes of x, the routing weights and y, and of a whole exported model."""

Layout = Literal["portable", "packed"]
"""`portable`: a weight per matrix, and a function of standard operators that runs them anywhere.
`packed`: a weight per layer in the native kernels' own layout, which only they can read."""

LinearWord = Literal["auto", "standard", "panels"]
"""Nodes of the matrices outside the experts: `standard` nodes of ONNX Runtime, or `panels`, which
are `Linear` or in the packed layout `LinearPacked`; `auto` takes panels in the packed layout."""

Format = str
"""Name of a format of stored weights, a key of `moe_export.formats.TABLE`."""

FORMATS: tuple[Format, ...] = tuple(TABLE)
"""Formats of the experts' weights. With float32 and float16 x has the format's dtype, with the
other formats either of the two. A format's place is its number in the native library and in packed
weights."""

QUANTIZED_FORMATS: tuple[Format, ...] = tuple(n for n, facts in TABLE.items() if facts.is_quantized)
"""Formats of codes with scales."""

ZERO_POINT_FORMATS: tuple[Format, ...] = tuple(n for n, f in TABLE.items() if f.has_zero_point)
"""Formats in which a group has a zero point beside its scale."""

Activation = Literal["swiglu", "geglu", "silu", "relu", "relu2"]
ACTIVATIONS: tuple[Activation, ...] = ("swiglu", "geglu", "silu", "relu", "relu2")
"""Activations between an expert's matrices; `moe_export.op.reference` has the formulas."""

GATED: tuple[Activation, ...] = ("swiglu", "geglu")
"""Activations with two factors, gate and up."""

ATTRIBUTES = {"num_experts": "int", "activation": "string", "format": "string"}
"""Every node carries all of them."""

QUANTIZED_ATTRIBUTES = {"group_size": "int"}
"""Nodes of a quantized format carry these too."""

INPUTS = ("x", "expert_indices", "routing_weights")
"""The inputs that come before the experts: [T, D], [T, K] int64, [T, K]."""

EXPERT_INPUTS = ("gate", "up", "down")
"""The inputs of each expert, in expert order: [D, w], [D, w], [w, D] with w its own width. In a
quantized format each is codes. Its scales follow, [ceil(D / group_size), w] and so on, in x's
dtype, and in a format with zero points these, in the scales' shape and the codes' type; see
`moe_export.formats`. Codes have the ONNX type of the format's name; nf4's are uint4."""

PLAIN_EXPERT_INPUTS = ("up", "down")
"""The inputs of each expert if the activation is not gated."""

SHARED_WEIGHT = "shared_weight"
"""The fourth input of a node with a shared expert, which every token takes: its weight [T, 1] in
x's dtype. It stands before all stored weights, so that an input's place alone tells ONNX Runtime
which are computed on a GPU and which may stay in the file. The shared expert's matrices, in the
experts' format, are the last inputs."""

SCALE_INPUTS = ("input_scale", "up_scale", "hidden_scale", "units")
"""Optional inputs that scale what the routed experts compute: factors [T, D], [T, D] and [T, W] in
x's dtype, and the column of `hidden_scale` for each hidden unit, a constant [R] int32. They stand
behind shared_weight and before the weights; see `moe_export.op.scales`."""

EXTRA_INPUTS_ATTRIBUTE = {"extra_inputs": "string"}
"""Attribute of nodes with inputs of `SCALE_INPUTS`: their names in order, with spaces between."""

PACKED_NAME = "RaggedMoEPacked"
PACKED_INPUTS = ("x", "expert_indices", "routing_weights", "packed", "shared_weight")
"""The other form of the operator: `packed` is one uint8 tensor [bytes] that holds all the weights
and says what they are (`moe_export.op.packed`). shared_weight is given if it holds a shared expert.
Inputs of `SCALE_INPUTS` come last, named by the attribute `extra_inputs`, the only one."""

OUTPUTS = ("y",)
"""[T, D]."""

LINEAR_NAME = "Linear"
"""y [..., N] = x [..., K] @ weight [K, N] + bias [N]; see `moe_export.op.linear`."""

LINEAR_ATTRIBUTES = {"format": "string"}
"""Every `Linear` node carries it; those of a quantized format have QUANTIZED_ATTRIBUTES too."""

LINEAR_PACKED_NAME = "LinearPacked"
LINEAR_PACKED_INPUTS = ("x", "packed")
"""The other form of `Linear`, without attributes: `packed` is one uint8 tensor [bytes] that holds
weight and bias (`moe_export.op.packed_linear`)."""


def expert_inputs(activation: Activation) -> tuple[str, ...]:
    """The weights of an expert.

    >>> expert_inputs("geglu"), expert_inputs("relu")
    (('gate', 'up', 'down'), ('up', 'down'))
    """
    return EXPERT_INPUTS if activation in GATED else PLAIN_EXPERT_INPUTS


def weight_parts(format_name: Format) -> tuple[str, ...]:
    """Suffixes of the inputs that hold one weight: codes or floats, scales, zero points.

    >>> weight_parts("float16"), weight_parts("nf4"), weight_parts("uint4")
    (('',), ('', '_scale'), ('', '_scale', '_zero_point'))
    """
    if format_name not in QUANTIZED_FORMATS:
        return ("",)
    return ("", "_scale", "_zero_point") if format_name in ZERO_POINT_FORMATS else ("", "_scale")


def input_names(
    num_experts: int,
    format_name: Format = "float32",
    *,
    shared_expert: bool = False,
    activation: Activation = "swiglu",
    extra_inputs: Sequence[str] = (),
) -> list[str]:
    """Every input of a node, in order.

    >>> input_names(2)[3:]
    ['gate_0', 'up_0', 'down_0', 'gate_1', 'up_1', 'down_1']
    >>> input_names(1, "int4")[3:]
    ['gate_0', 'gate_scale_0', 'up_0', 'up_scale_0', 'down_0', 'down_scale_0']
    >>> input_names(1, shared_expert=True)[3:]
    ['shared_weight', 'gate_0', 'up_0', 'down_0', 'shared_gate', 'shared_up', 'shared_down']
    >>> input_names(1, extra_inputs=("input_scale",))[3:]
    ['input_scale', 'gate_0', 'up_0', 'down_0']
    """
    roles = expert_inputs(activation)
    parts = weight_parts(format_name)
    names = [*INPUTS, SHARED_WEIGHT] if shared_expert else [*INPUTS]
    names += extra_inputs
    for expert in range(num_experts):
        names += [f"{role}{part}_{expert}" for role in roles for part in parts]
    if shared_expert:
        names += [f"shared_{role}{part}" for role in roles for part in parts]
    return names


def linear_input_names(format_name: Format, *, bias: bool = False) -> list[str]:
    """Every input of a `Linear` node, in order.

    >>> linear_input_names("uint4", bias=True)
    ['x', 'weight', 'weight_scale', 'weight_zero_point', 'bias']
    """
    weight = [f"weight{part}" for part in weight_parts(format_name)]
    return ["x", *weight, *(["bias"] if bias else [])]


def uses_panels(layout: Layout, linear: LinearWord) -> bool:
    """True if matrices outside the experts are `Linear` or `LinearPacked` nodes.

    >>> uses_panels("packed", "auto"), uses_panels("portable", "auto")
    (True, False)
    """
    return linear == "panels" or (linear == "auto" and layout == "packed")
