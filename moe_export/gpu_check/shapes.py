"""Times of the kernels in the packaged shapes and in neighbouring ones.

The packaged shapes were chosen without a device, by registers and spills of the compiled kernels
(docs/results/cuda_kernels.md). A better one is to be written into `op/triton/plan.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from moe_export.gpu_check.draws import routing
from moe_export.gpu_check.random_layers import random_layer
from moe_export.gpu_check.timing import graph_seconds
from moe_export.op.spec import Format
from moe_export.op.triton import plan
from moe_export.op.triton.device_layout import codes_per_byte
from moe_export.op.triton.driver import Call, DeviceLayer
from moe_export.op.triton.plan import Shape
from moe_export.testing import layer_sizes as sizes

MOST_S = 140
"""Seconds after which no other shape is begun."""

GROUP = 128
FORMATS: tuple[Format, ...] = ("float16", "int4")
COPIES = 8
"""Layers in a graph, more than fit into the second-level cache."""


@dataclass(frozen=True)
class Kind:
    """Two kernels, the number of tokens that they are meant for, and the shapes to try.

    Attributes:
        tokens: Tokens of the call.
        kernels: Names of the kernels.
        shapes: Shapes to try, for float16; large tiles of int4 have half the columns. A shape may
            not run for lack of registers or shared memory.
    """

    tokens: int
    kernels: tuple[str, str]
    shapes: tuple[Shape, ...]


KINDS = (
    Kind(
        1,
        ("gate_up_rows", "down_rows"),
        tuple(
            Shape(1, rows, columns, warps, 1)
            for rows, columns, warps in (
                *((2, 1024, 4), (4, 512, 4), (4, 1024, 4), (4, 2048, 4)),
                *((8, 512, 4), (8, 1024, 4), (4, 1024, 8), (4, 512, 2)),
            )
        ),
    ),
    Kind(
        16,
        ("gate_up_tiles", "down_tiles"),
        tuple(
            Shape(plan.SMALL_TILE_PAIRS, rows, columns, warps, stages)
            for rows, columns, warps, stages in (
                *((64, 64, 2, 4), (64, 64, 2, 3), (64, 64, 4, 4)),
                *((64, 128, 4, 3), (32, 64, 4, 4), (32, 64, 2, 4)),
            )
        ),
    ),
    Kind(
        4096,
        ("gate_up_tiles", "down_tiles"),
        tuple(
            Shape(pairs, rows, 64, warps, stages)
            for pairs, rows, warps, stages in (
                *((128, 128, 8, 3), (128, 128, 8, 4), (64, 128, 4, 3)),
                *((64, 128, 8, 3), (128, 64, 4, 4), (128, 256, 8, 3)),
            )
        ),
    ),
)


def shapes(device: str = "cuda") -> list[dict[str, Any]]:
    """Times each kernel in each format and shape, the packaged shape first.

    Args:
        device: Device of torch; the CPU in tests.

    Returns:
        Rows with `us`, and `of_packaged`, the time over that of the packaged shape.
    """
    end = time.monotonic() + MOST_S
    widths = [int(w) for w in sizes.skewed_widths(np.random.default_rng(0))]
    rows: list[dict[str, Any]] = []
    for format_name in FORMATS:
        made = [
            random_layer(widths, format_name, GROUP, seed, sizes.HIDDEN, device)
            for seed in range(COPIES)
        ]
        for kind in KINDS:
            for kernel in kind.kernels:
                rows += _rows_of(kind, kernel, made, device, end)
    return rows


def _rows_of(
    kind: Kind, kernel: str, made: Sequence[DeviceLayer], device: str, end: float
) -> list[dict[str, Any]]:
    layout = made[0].layout
    x = torch.randn(kind.tokens, sizes.HIDDEN, dtype=torch.float16, device=device)
    routed = [
        [torch.from_numpy(array).to(device) for array in routing(kind.tokens, draw)]
        for draw in range(len(made))
    ]
    packaged = Call(made[0], x, *routed[0]).shapes[kernel]
    others = []
    for shape in kind.shapes:
        if kind.tokens > sizes.EXPERTS and codes_per_byte(layout.format_name) == 2:
            shape = replace(shape, columns=shape.columns // 2)
        if shape != packaged:
            others.append(shape)
    rows: list[dict[str, Any]] = []
    for shape in (packaged, *others):
        row: dict[str, Any] = {"kernel": kernel, "format": layout.format_name}
        row |= {"tokens": kind.tokens, **vars(shape)}
        if time.monotonic() > end:
            rows.append(row | {"failed": "no time was left"})
            continue
        calls = [
            Call(layer, x, *chosen, shapes={kernel: shape})
            for layer, chosen in zip(made, routed, strict=True)
        ]
        try:
            jobs = [_Alone(call, kernel) for call in calls]
            row["us"] = graph_seconds(jobs) / len(jobs) * 1e6
        except Exception as error:  # noqa: BLE001 - the message of the compiler goes into the row
            rows.append(row | {"failed": " ".join(str(error).split())[:120]})
            continue
        rows.append(row)
        if "us" in rows[0]:
            row["of_packaged"] = row["us"] / rows[0]["us"]
    return rows


class _Alone:
    """One kernel of a call, run on what the other kernels wrote once."""

    def __init__(self, call: Call, kernel: str) -> None:
        call.run()
        self._call = call
        (self._launch,) = (launch for launch in call.launches() if launch[0].fn.__name__ == kernel)

    def __call__(self) -> torch.Tensor:
        kernel, grid, arguments, constants = self._launch
        kernel[grid](*arguments, **constants)
        return self._call.y
