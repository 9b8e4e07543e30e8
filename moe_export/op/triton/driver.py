"""Runs the kernels from torch: on a GPU, or on the CPU where TRITON_INTERPRET=1 is set.

For tests and timing. Exported models run the kernels through the native library.

Legend: T tokens, D hidden, K experts per token, S slots per token (K, and one more with a shared
expert), E experts with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from moe_export.op.spec import ACTIVATIONS, GATED
from moe_export.op.triton import plan
from moe_export.op.triton.device_layout import RUN, DeviceLayout, codes_per_byte, padded_depth
from moe_export.op.triton.kernels_1_common import (
    add_pairs,
    group_pairs,
    pad_rows,
    scale_pairs,
    scale_rows,
    shift_pairs,
)
from moe_export.op.triton.kernels_2_rows import MAP_ROWS, down_rows, gate_up_rows
from moe_export.op.triton.kernels_3_tiles import down_tiles, gate_up_tiles

PARTS = ("", "_scale", "_zero")
"""Suffixes of the names of a matrix's arrays."""

ALIGNMENT = 16
"""Rows of x and of scratch begin at multiples of this many values."""


ANY_ARCHITECTURE = 90
"""Architecture whose shapes the interpreter uses."""


@dataclass(frozen=True)
class DeviceLayer:
    """A layer in the memory of a device.

    Attributes:
        layout: sizes of the layer, and its arrays in host memory.
        tensors: arrays of the layout on the device, by name.
    """

    layout: DeviceLayout
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, layout: DeviceLayout, device: str) -> DeviceLayer:
        """Copies the arrays of a layout to a device."""
        tensors = {name: _tensor(array).to(device) for name, array in layout.arrays.items()}
        return cls(layout, tensors)


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    if array.size == 0:
        array = np.zeros(ALIGNMENT, array.dtype)  # a kernel is never given a null pointer
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _architecture(x: torch.Tensor) -> int:
    """Compute capability of x's device, such as 90."""
    if x.device.type != "cuda":
        return ANY_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * int(major) + int(minor)


class Call:
    """One execution of a layer: buffers, and launches that can be repeated.

    Args:
        layer: weights on the device.
        x_TD: input [T, D], float16 or float32.
        indices_TK: experts of each token, [T, K] int64.
        weights_TK: routing weights, [T, K] in x's dtype.
        shared_weight_T1: weights of the shared expert, [T, 1] in x's dtype; None without one.
        input_scale_TD: factors of x for the routed experts, in x's dtype; None without any.
        up_scale_TD: factors of x for their `up` alone, in x's dtype; None for those of
            `input_scale_TD`, without which it is not given.
        hidden_scale_TW: factors of their hidden values, in x's dtype; None without any.
        path: path of kernels; chosen by the number of tokens if None.
        pairs: kind of tile; chosen by the number of pairs if None.
        shapes: shapes by kernel that replace those of the plan.
    """

    def __init__(
        self,
        layer: DeviceLayer,
        x_TD: torch.Tensor,
        indices_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        shared_weight_T1: torch.Tensor | None = None,
        *,
        input_scale_TD: torch.Tensor | None = None,
        up_scale_TD: torch.Tensor | None = None,
        hidden_scale_TW: torch.Tensor | None = None,
        path: plan.Path | None = None,
        pairs: int | None = None,
        shapes: Mapping[str, plan.Shape] | None = None,
    ) -> None:
        layout = layer.layout
        self.layer, self.x, self.indices, self.weights = layer, x_TD, indices_TK, weights_TK
        self.shared_weight = weights_TK if shared_weight_T1 is None else shared_weight_T1
        self.input_scale, self.up_scale = input_scale_TD, up_scale_TD
        self.hidden_scale = hidden_scale_TW
        self.tokens, self.top_k = indices_TK.shape
        self.hidden_size = layout.hidden_size
        shared = shared_weight_T1 is not None
        self.slots = self.top_k + shared
        self.num_experts = len(layout.widths)
        self.activation = ACTIVATIONS.index(layout.activation)
        self.num_routed = self.num_experts - shared
        self.path = path or plan.path_of(self.tokens, self.slots)
        kind = pairs or plan.tile_pairs(self.tokens, self.slots, self.num_experts)
        kinds = dict.fromkeys(("gate_up_rows", "down_rows", "gate_up_tiles", "down_tiles"), kind)
        if up_scale_TD is not None:
            kinds["gate_up_tiles"] = plan.UP_TILE_PAIRS
        x_dtype = "float16" if x_TD.dtype == torch.float16 else "float32"
        architecture = _architecture(x_TD)
        self.shapes = {
            name: plan.shape_of(name, layout.format_name, x_dtype, size, architecture)
            for name, size in kinds.items()
        } | dict(shapes or {})
        self.y = torch.empty_like(x_TD)
        self.pads = self.hidden_size % ALIGNMENT != 0
        self.x_columns = -(-self.hidden_size // ALIGNMENT) * ALIGNMENT
        count = self.tokens * self.slots

        def scratch(*shape: int, dtype: torch.dtype = x_TD.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=x_TD.device)

        self.rows_x = scratch(self.tokens, self.x_columns) if self.pads else x_TD
        scaled = input_scale_TD is not None or hidden_scale_TW is not None
        self.factors: plan.Factors = "scaled" if scaled else ""
        if up_scale_TD is not None:
            self.factors = "up_scaled"
        if self.path == "rows":
            self.rows_scale, self.rows_up_scale = (
                scratch(self.tokens, self.x_columns) if scale is not None and self.pads else scale
                for scale in (input_scale_TD, up_scale_TD)
            )
            self.hidden_stride = plan.token_stride(
                layout.widths, self.top_k, shared, layout.format_name
            )
            self.hidden = scratch(self.tokens, self.hidden_stride)
            units = self.hidden_stride // (RUN * codes_per_byte(layout.format_name))
            self.unit_map = scratch(self.tokens, 1 + MAP_ROWS.value * units, dtype=torch.int32)
        else:
            self.hidden_stride = padded_depth(max(layout.widths), layout.format_name)
            self.hidden = scratch(count, self.hidden_stride)
            self.out = scratch(count, self.x_columns)
            self.pairs = scratch(count, dtype=torch.int32)
            self.gate_up_pairs = self.pairs
            if input_scale_TD is not None:
                self.rows_x = scratch((1 + shared) * self.tokens, self.x_columns)
                self.rows_up = self.rows_x if up_scale_TD is None else torch.empty_like(self.rows_x)
                self.gate_up_pairs = torch.empty_like(self.pairs) if shared else self.pairs
            self.starts = scratch(self.num_experts, dtype=torch.int32)
            self.counts = scratch(self.num_experts, dtype=torch.int32)

    def run(self) -> torch.Tensor:
        """Launches all kernels, without waiting for them."""
        if self.tokens == 0:
            return self.y
        for kernel, grid, arguments, constants in self.launches():
            kernel[grid](*arguments, **constants)
        return self.y

    def launches(self) -> Iterator[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]]:
        """Kernel, grid, arguments and constants of each launch."""
        if self.input_scale is not None and self.path == "tiles":
            yield self._scaled_rows(self.input_scale, self.rows_x)
            if self.up_scale is not None:
                yield self._scaled_rows(self.up_scale, self.rows_up)
        elif self.pads:
            yield self._padded(self.x, self.rows_x)
        yield from self._rows() if self.path == "rows" else self._tiles()

    def _padded(self, x_TD: torch.Tensor, padded: torch.Tensor) -> Any:
        grid = (self.tokens, -(-self.x_columns // plan.COPY_BLOCK))
        arguments = (x_TD, padded, self.hidden_size, self.x_columns)
        return pad_rows, grid, arguments, {"BLOCK": plan.COPY_BLOCK}

    def _scaled_rows(self, scale_TD: torch.Tensor, rows: torch.Tensor) -> Any:
        grid = (len(rows), -(-self.x_columns // plan.COPY_BLOCK))
        sizes = (self.tokens, self.hidden_size, self.x_columns)
        return scale_rows, grid, (self.x, scale_TD, rows, *sizes), {"BLOCK": plan.COPY_BLOCK}

    def _shifted_pairs(self) -> Any:
        count = self.tokens * self.slots
        sizes = (count, self.tokens, self.top_k, self.slots)
        grid = (-(-count // plan.GROUP_BLOCK),)
        arguments = (self.pairs, self.gate_up_pairs, *sizes)
        return shift_pairs, grid, arguments, {"BLOCK": plan.GROUP_BLOCK}

    def _scaled_pairs(self, scale_TW: torch.Tensor, w: Mapping[str, torch.Tensor]) -> Any:
        arguments = (
            *(self.hidden, self.indices, self.pairs, self.starts, self.counts, scale_TW),
            *(w["columns"], w["table"], self.hidden_stride, scale_TW.shape[1]),
            *(int(self._has_columns), self.top_k, self.slots, self.num_routed, self.num_experts),
        )
        grid = (self.tokens * self.slots, -(-self.hidden_stride // plan.COPY_BLOCK))
        return scale_pairs, grid, arguments, {"BLOCK": plan.COPY_BLOCK}

    def _scales(self) -> tuple[Any, ...]:
        """Arguments of `gate_up_rows` for factors, which need not all be there."""
        columns, anything = self.layer.tensors["columns"], self.x
        hidden = anything if self.hidden_scale is None else self.hidden_scale
        return (
            *(anything if self.rows_scale is None else self.rows_scale, hidden, columns),
            hidden.shape[1],
            *(
                0 if scale is None else self.top_k
                for scale in (self.input_scale, self.hidden_scale)
            ),
            self.top_k if self._has_columns else 0,
            *(() if self.rows_up_scale is None else (self.rows_up_scale,)),
        )

    @property
    def _has_columns(self) -> bool:
        return self.layer.layout.columns.size > 0

    def _weights(self) -> tuple[dict[str, torch.Tensor], int, int, int]:
        layout = self.layer.layout
        depth = padded_depth(layout.hidden_size, layout.format_name)
        group = layout.group_size
        scale_stride = -(-layout.hidden_size // group) if group else 0
        shift = (group // RUN).bit_length() - 1 if group else 0
        tensors = self.layer.tensors
        if layout.activation not in GATED:
            # The kernels multiply by up twice rather than be compiled once more without a gate.
            tensors = tensors | {f"gate{part}": tensors[f"up{part}"] for part in PARTS}
        return tensors, depth, scale_stride, shift

    def _constants(self, name: str) -> dict[str, Any]:
        shape = self.shapes[name]
        format_name = self.layer.layout.format_name
        constants = plan.constants_of(name, format_name, shape, self.factors)
        return constants | {"num_warps": shape.warps, "num_stages": shape.stages}

    def _tiles_of(self, name: str, size: int) -> int:
        return -(-size // self.shapes[name].rows)

    def _rows(self) -> Iterator[Any]:
        w, depth, scale_stride, shift = self._weights()
        scales = ((self.input_scale, self.rows_scale), (self.up_scale, self.rows_up_scale))
        for scale, rows in scales:
            if self.pads and scale is not None and rows is not None:
                yield self._padded(scale, rows)
        gate_up = (
            *(self.rows_x, self.indices, self.weights, self.shared_weight, self.hidden),
            *(self.unit_map, w["gate"], w["up"], w["gate_scale"], w["up_scale"], w["gate_zero"]),
            *(w["up_zero"], w["codebook"], w["table"], self.hidden_size, self.x_columns, depth),
            *(self.hidden_stride, scale_stride, shift, self.top_k, self.slots, self.num_routed),
            *(self.num_experts, self.activation),
            *(self._scales() if self.factors else ()),
        )
        # The map is written also where all widths are 0.
        grid = (max(self._tiles_of("gate_up_rows", self.hidden_stride), 1), self.tokens)
        yield gate_up_rows, grid, gate_up, self._constants("gate_up_rows")
        down = (
            *(self.hidden, self.unit_map, self.y, w["down"], w["down_scale"], w["down_zero"]),
            *(w["codebook"], self.hidden_size, self.hidden_stride),
        )
        grid = (self._tiles_of("down_rows", self.hidden_size), self.tokens)
        yield down_rows, grid, down, self._constants("down_rows")

    def _tiles(self) -> Iterator[Any]:
        w, depth, scale_stride, shift = self._weights()
        group = (
            *(self.indices, self.pairs, self.starts, self.counts, self.tokens, self.top_k),
            *(self.slots, self.num_routed),
        )
        yield group_pairs, (self.num_experts,), group, {"BLOCK": plan.GROUP_BLOCK}
        if self.gate_up_pairs is not self.pairs:
            yield self._shifted_pairs()
        gate_up = (
            *(self.rows_x, self.gate_up_pairs, self.starts, self.counts, self.hidden),
            *(w["gate"], w["up"]),
            *(w["gate_scale"], w["up_scale"], w["gate_zero"], w["up_zero"], w["codebook"]),
            *(w["table"], self.x_columns, depth, self.hidden_stride, scale_stride, shift),
            *(self.slots, self.num_experts, self.activation),
            *(() if self.up_scale is None else (self.rows_up,)),
        )
        constants = self._constants("gate_up_tiles")
        most = plan.most_tiles(self.tokens, self.slots, self.num_experts, constants["PAIRS"])
        grid = (self._tiles_of("gate_up_tiles", self.hidden_stride), most)
        yield gate_up_tiles, grid, gate_up, constants
        if self.hidden_scale is not None:
            yield self._scaled_pairs(self.hidden_scale, w)
        down = (
            *(self.hidden, self.pairs, self.starts, self.counts, self.out, w["down"]),
            *(w["down_scale"], w["down_zero"], w["codebook"], w["table"], self.hidden_size),
            *(self.hidden_stride, self.x_columns, shift, self.num_experts),
        )
        constants = self._constants("down_tiles")
        most = plan.most_tiles(self.tokens, self.slots, self.num_experts, constants["PAIRS"])
        grid = (self._tiles_of("down_tiles", self.hidden_size), most)
        yield down_tiles, grid, down, constants
        add = (
            *(self.out, self.indices, self.weights, self.shared_weight, self.y, w["table"]),
            *(self.hidden_size, self.x_columns, self.top_k, self.slots, self.num_routed),
        )
        grid = (self.tokens, -(-self.hidden_size // plan.COPY_BLOCK))
        yield add_pairs, grid, add, {"BLOCK": plan.COPY_BLOCK}
