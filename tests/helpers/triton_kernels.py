"""The Triton kernels as one more way to execute a `RaggedMoE` node, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.op.triton import plan
from moe_export.op.triton.driver import Call, DeviceLayer
from moe_export.op.triton.packed import PackedLayer, pack
from moe_export.testing.cases import Inputs


def packed_layer(inputs: Inputs) -> PackedLayer:
    """The experts in the kernels' layout."""
    experts = inputs.experts if inputs.shared is None else (*inputs.experts, inputs.shared)
    return pack(
        experts,
        inputs.format_name,
        inputs.group_size,
        inputs.x.shape[1],
        inputs.x.dtype.name,
        inputs.activation,
    )


def large_shape(kernel: str, *facts: object) -> plan.Shape:
    """In place of `plan.shape_of`: a program costs the interpreter milliseconds, however much it
    does.
    """
    pairs = facts[2]
    assert isinstance(pairs, int)
    rows = kernel.endswith("rows")
    return plan.Shape(1, 32, 128, 4, 1) if rows else plan.Shape(pairs, 64, 64, 4, 1)


def run_kernels(inputs: Inputs, path: plan.Path, pairs: int | None = None) -> NDArray[Any]:
    """By the kernels of a path; every buffer holds NaN before it is written."""
    call = Call(
        DeviceLayer.of(packed_layer(inputs), "cpu"),
        *(_tensor(array) for array in (inputs.x, inputs.expert_indices, inputs.routing_weights)),
        None if inputs.shared_weight is None else _tensor(inputs.shared_weight),
        path=path,
        pairs=pairs,
    )
    for buffer in (call.y, call.hidden, *([call.out] if path == "tiles" else [])):
        buffer.fill_(float("nan"))
    y: NDArray[Any] = call.run().numpy()
    return y


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
