"""The Triton kernels as one more way to execute a `RaggedMoE` node, in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.op.triton import plan
from moe_export.op.triton.device_layout import DeviceLayout, lay_out
from moe_export.op.triton.driver import Call, DeviceLayer
from moe_export.testing.cases import Inputs


def layout_of(inputs: Inputs) -> DeviceLayout:
    """The experts in the layout of the CUDA kernels."""
    experts = inputs.experts if inputs.shared is None else (*inputs.experts, inputs.shared)
    return lay_out(
        experts,
        inputs.format_name,
        inputs.group_size,
        inputs.x.shape[1],
        inputs.x.dtype.name,
        inputs.activation,
        inputs.extra_inputs.get("units"),
    )


def large_shape(kernel: str, *facts: object) -> plan.Shape:
    """Replacement of `plan.shape_of` with few programs: each costs the interpreter milliseconds."""
    pairs = facts[2]
    assert isinstance(pairs, int)
    rows = kernel.endswith("rows")
    return plan.Shape(1, 32, 128, 4, 1) if rows else plan.Shape(pairs, 64, 64, 4, 1)


def run_kernels(inputs: Inputs, path: plan.Path, pairs: int | None = None) -> NDArray[Any]:
    """Runs the kernels of a path, on buffers filled with NaN."""
    call = Call(
        DeviceLayer.of(layout_of(inputs), "cpu"),
        *(_tensor(array) for array in (inputs.x, inputs.expert_indices, inputs.routing_weights)),
        None if inputs.shared_weight is None else _tensor(inputs.shared_weight),
        input_scale_TD=_scale(inputs, "input_scale"),
        up_scale_TD=_scale(inputs, "up_scale"),
        hidden_scale_TW=_scale(inputs, "hidden_scale"),
        path=path,
        pairs=pairs,
    )
    for buffer in (call.y, call.hidden, *([call.out] if path == "tiles" else [])):
        buffer.fill_(float("nan"))
    y: NDArray[Any] = call.run().numpy()
    return y


def _scale(inputs: Inputs, name: str) -> torch.Tensor | None:
    array = inputs.extra_inputs.get(name)
    return None if array is None else _tensor(array)


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
