"""What a `RaggedMoE` node looks like: names, order and dtypes as plain data.

The meaning is in `moe_export.op.reference`; the graph builder, the function body and the native
library take their names from here.
"""

from __future__ import annotations

from typing import Literal, get_args

DOMAIN = "moe_export"
NAME = "RaggedMoE"
VERSION = 1
"""Opset version of the domain; raised when a node of the old form would mean something else."""

Format = Literal["float32", "float16", "bfloat16", "int8", "int4", "uint8", "uint4", "nf4"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""How the experts' weights are stored. x, the routing weights and y are of one dtype: with float32
and float16 it is the same, with the other formats it is either of the two. A format's place is its
number in the native library and in packed weights."""

QUANTIZED_FORMATS: tuple[Format, ...] = ("int8", "int4", "uint8", "uint4", "nf4")

ZERO_POINT_FORMATS: tuple[Format, ...] = ("uint8", "uint4")
"""Those in which a group has a zero point beside its scale."""

Activation = Literal["swiglu", "geglu", "silu", "relu", "relu2"]
ACTIVATIONS: tuple[Activation, ...] = ("swiglu", "geglu", "silu", "relu", "relu2")
"""What lies between an expert's matrices; `moe_export.op.reference` has the formulas."""

GATED: tuple[Activation, ...] = ("swiglu", "geglu")
"""Those of two factors, gate and up."""

ATTRIBUTES = {"num_experts": "int", "activation": "string", "format": "string"}
"""Every node carries all of them."""

QUANTIZED_ATTRIBUTES = {"group_size": "int"}
"""Nodes of a quantized format carry these too."""

INPUTS = ("x", "expert_indices", "routing_weights")
"""The inputs that come before the experts: [T, D], [T, K] int64, [T, K]."""

EXPERT_INPUTS = ("gate", "up", "down")
"""The inputs of each expert, in expert order: [D, w], [D, w], [w, D] with w its own width. In a
quantized format each is codes and is followed by its scales, [ceil(D / group_size), w] and so on,
in x's dtype, and in a format that has them by its zero points, of the scales' shape and the codes'
type; see `moe_export.formats`. Codes are of ONNX's type of the format's name; nf4's are uint4."""

PLAIN_EXPERT_INPUTS = ("up", "down")
"""The same where the activation is not gated."""

SHARED_WEIGHT = "shared_weight"
"""With a shared expert, an expert that every token takes, the fourth input: its weight [T, 1] in
x's dtype. It stands before all stored weights, so that an input's place alone tells ONNX Runtime
which are computed on a GPU and which may stay in the file."""

SHARED_INPUTS = ("shared_gate", "shared_up", "shared_down")
"""The last inputs, with a shared expert: its weights, in the experts' format; there is a
`shared_gate` where there is a gate."""

PACKED_NAME = "RaggedMoEPacked"
PACKED_INPUTS = ("x", "expert_indices", "routing_weights", "packed", "shared_weight")
"""The other form of the operator, without attributes: `packed` is one uint8 tensor [bytes] that
holds all the weights and says what they are (`moe_export.op.packed`). shared_weight is given if it
holds a shared expert."""

OUTPUTS = ("y",)
"""[T, D]."""


def expert_inputs(activation: Activation) -> tuple[str, ...]:
    """The weights of an expert.

    >>> expert_inputs("geglu"), expert_inputs("relu")
    (('gate', 'up', 'down'), ('up', 'down'))
    """
    return EXPERT_INPUTS if activation in GATED else PLAIN_EXPERT_INPUTS


def weight_parts(format_name: Format) -> tuple[str, ...]:
    """What is put behind a weight's name for each of the inputs that it takes.

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
) -> list[str]:
    """Every input of a node, in order.

    >>> input_names(2)[3:]
    ['gate_0', 'up_0', 'down_0', 'gate_1', 'up_1', 'down_1']
    >>> input_names(1, "int4")[3:]
    ['gate_0', 'gate_scale_0', 'up_0', 'up_scale_0', 'down_0', 'down_scale_0']
    >>> input_names(1, shared_expert=True)[3:]
    ['shared_weight', 'gate_0', 'up_0', 'down_0', 'shared_gate', 'shared_up', 'shared_down']
    """
    roles = expert_inputs(activation)
    parts = weight_parts(format_name)
    names = [*INPUTS, SHARED_WEIGHT] if shared_expert else [*INPUTS]
    for expert in range(num_experts):
        names += [f"{role}{part}_{expert}" for role in roles for part in parts]
    if shared_expert:
        names += [f"shared_{role}{part}" for role in roles for part in parts]
    return names
