"""Layers with random weights in the kernels' layout, made on the device.

Legend: w width of an expert, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moe_export.formats import GRIDS
from moe_export.op.spec import Format
from moe_export.op.triton.device_layout import DeviceLayout, codes_per_byte, padded_depth
from moe_export.op.triton.driver import DeviceLayer
from moe_export.testing import layer_sizes as sizes

ROLES = ("gate", "up", "down")
UNUSED = 16
"""Length of an array that a format does not use; a kernel never gets a null pointer."""


def expert_bytes(width: int, format_name: Format, group_size: int) -> float:
    """Bytes of an expert's weights with scales and zero points, without padding."""
    grid = GRIDS.get(format_name)
    bits = 16.0
    if grid is not None:
        bits = grid.storage_bits + (16 + 8 * grid.has_zero_point) / group_size
    return 3 * sizes.HIDDEN * width * bits / 8


def random_layer(
    widths: Sequence[int],
    format_name: Format,
    group_size: int,
    seed: int,
    hidden_size: int,
    device: str,
) -> DeviceLayer:
    """A layer in the layout of `lay_out`, which would take longer than the timing.

    Args:
        widths: w of each expert.
        format_name: float16, bfloat16 or a quantized format.
        group_size: Weights that share a scale in a quantized format.
        seed: Seed of the weights.
        hidden_size: D.
        device: Device of torch.
    """
    rows = sum(widths)
    generator = torch.Generator(device).manual_seed(seed)
    depth = padded_depth(hidden_size, format_name)
    depths = [padded_depth(w, format_name) for w in widths]
    grid = GRIDS.get(format_name)
    groups = [0 if grid is None else -(-w // group_size) for w in widths]

    def codes(size: int, end: int = 256) -> torch.Tensor:
        kind = torch.uint8
        return torch.randint(0, end, (size,), dtype=kind, device=device, generator=generator)

    def values(size: int) -> torch.Tensor:
        if grid is not None:
            return codes(size // codes_per_byte(format_name))
        dtype = torch.float16 if format_name == "float16" else torch.bfloat16
        return torch.randn(size, dtype=dtype, device=device, generator=generator) * 0.02

    def scales(size: int) -> torch.Tensor:
        size = UNUSED if grid is None else size
        return torch.full((size,), 2.0**-8, dtype=torch.float16, device=device)

    def zeros(size: int) -> torch.Tensor:
        has_zero_point = grid is not None and grid.has_zero_point
        return codes(size if has_zero_point else UNUSED, 16)

    starts = [_starts(sizes) for sizes in (widths, depths, groups)]
    # The arrays of the device below take the place of these.
    absent: dict[str, Any] = {
        **dict.fromkeys(ROLES, np.zeros(0, np.uint8)),
        **dict.fromkeys([f"{role}_scale" for role in ROLES], np.zeros(0, np.float16)),
        **dict.fromkeys([f"{role}_zero" for role in ROLES], np.zeros(0, np.uint8)),
    }
    layout = DeviceLayout(
        format_name=format_name,
        group_size=0 if grid is None else group_size,
        hidden_size=hidden_size,
        widths=tuple(widths),
        **absent,
        codebook=np.zeros(0, np.float32),
        table=np.array([widths, *starts], np.int32),
        columns=np.zeros(0, np.int32),
    )
    codebook = np.zeros(UNUSED, np.float32)
    if grid is not None and grid.codebook is not None:
        codebook = np.asarray(grid.codebook, np.float32)
    tensors = {
        "codebook": torch.from_numpy(codebook).to(device),
        "table": torch.from_numpy(layout.table).to(device),
        "columns": torch.zeros(UNUSED, dtype=torch.int32, device=device),
    }
    of_row = 0 if grid is None else -(-hidden_size // group_size)
    for role in ROLES:
        size = sum(depths) * hidden_size if role == "down" else rows * depth
        of_groups = sum(groups) * hidden_size if role == "down" else rows * of_row
        tensors[role] = values(size)
        tensors[f"{role}_scale"], tensors[f"{role}_zero"] = scales(of_groups), zeros(of_groups)
    return DeviceLayer(layout, tensors)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes)[:-1].tolist()]
