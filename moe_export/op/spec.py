"""What a `RaggedMoE` node looks like: names, order and dtypes as plain data.

The meaning is in `moe_export.op.reference`; the graph builder, the function body and the native
library take their names from here.
"""

from __future__ import annotations

from typing import Literal

DOMAIN = "moe_export"
NAME = "RaggedMoE"
VERSION = 1
"""Opset version of the domain; raised when a node of the old form would mean something else."""

Format = Literal["float32", "float16"]
FORMATS: tuple[Format, ...] = ("float32", "float16")
"""How the experts' weights are stored; x, the routing weights and y have the same dtype."""

ACTIVATIONS = ("swiglu",)

ATTRIBUTES = {"num_experts": "int", "activation": "string", "format": "string"}
"""Every node carries all of them."""

INPUTS = ("x", "expert_indices", "routing_weights")
"""The inputs that come before the experts: [T, D], [T, K] int64, [T, K]."""

EXPERT_INPUTS = ("gate", "up", "down")
"""The inputs of each expert, in expert order: [D, w], [D, w], [w, D] with w its own width."""

OUTPUTS = ("y",)
"""[T, D]."""


def input_names(num_experts: int) -> list[str]:
    """Every input of a node, in order.

    >>> input_names(2)[3:]
    ['gate_0', 'up_0', 'down_0', 'gate_1', 'up_1', 'down_1']
    """
    experts = (f"{role}_{e}" for e in range(num_experts) for role in EXPERT_INPUTS)
    return [*INPUTS, *experts]
