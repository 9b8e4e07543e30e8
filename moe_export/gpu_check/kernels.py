"""Times of the Triton kernels on the device; the library runs binaries of the same sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton

from moe_export.gpu_check.draws import routing
from moe_export.gpu_check.fused_moe import FEW, MANY, FusedMoe
from moe_export.gpu_check.random_layers import expert_bytes, random_layer
from moe_export.gpu_check.timing import copy_rate, device_name, graph_seconds, matrix_rate
from moe_export.op.spec import Format
from moe_export.op.triton.device_layout import device_format
from moe_export.op.triton.driver import Call, DeviceLayer
from moe_export.testing import layer_sizes as sizes

TOKENS = (1, 4, 16, 64, 512, 4096)
DECODE_TOKENS = 64
"""Up to this number of tokens bytes limit a layer, beyond it operations."""

FEW_COPIES = 2
"""Sets of weights that take turns with many tokens; with few tokens there are as many sets as let
every expert be chosen. They exceed the second-level cache, as the layers of a model do."""

SKEWED, UNIFORM, PADDED = "skewed", "uniform 704", "padded 1408"
FUSED = "fused MoE, uniform 704"


@dataclass(frozen=True)
class Kind:
    """A format to time, its group size, and the widths.

    float16 has no row of its own: the device stores bfloat16 experts as float16.
    """

    format_name: Format
    group_size: int
    names: tuple[str, ...]


KINDS = (
    Kind("bfloat16", 0, (SKEWED, UNIFORM, PADDED)),
    Kind("int4", 128, (SKEWED, UNIFORM, PADDED)),
    Kind("int4", 32, (SKEWED,)),
    Kind("int8", 32, (SKEWED,)),
    Kind("uint8", 32, (SKEWED,)),
    Kind("uint4", 32, (SKEWED,)),
    Kind("nf4", 32, (SKEWED,)),
)


@dataclass(frozen=True)
class Rates:
    """Copy bandwidth and matrix rate of the device, in the same run."""

    copy_bytes_per_s: float
    flops_per_s: float


def layers(device: str = "cuda") -> list[dict[str, Any]]:
    """Times the routed experts of a layer at several numbers of tokens.

    A time is of one layer in a captured graph of several, each with its own weights and choice of
    experts, in microseconds.

    Args:
        device: Device of torch; the CPU in tests.
    """
    rates = Rates(copy_rate(), matrix_rate())
    about = {"layer": device_name(), "triton": triton.__version__}
    rows: list[dict[str, Any]] = [about | vars(rates)]
    skewed = tuple(int(w) for w in sizes.skewed_widths(np.random.default_rng(0)))
    uniform = (sizes.MEAN_WIDTH,) * sizes.EXPERTS
    widths = {SKEWED: skewed, UNIFORM: uniform, PADDED: (sizes.FULL_WIDTH,) * sizes.EXPERTS}
    for kind in KINDS:
        stored = device_format(kind.format_name, "float16")
        for name in kind.names:
            made = [
                random_layer(widths[name], stored, kind.group_size, seed, sizes.HIDDEN, device)
                for seed in range(_copies(1))
            ]
            rows += [_row(kind, name, made, tokens, rates, device) for tokens in TOKENS]
            del made
            torch.cuda.empty_cache()
    return with_ratios([*rows, *_fused_rows(device)])


def _row(
    kind: Kind, name: str, made: Sequence[DeviceLayer], tokens: int, rates: Rates, device: str
) -> dict[str, Any]:
    made = made[: _copies(tokens)]
    routed = [routing(tokens, draw) for draw in range(len(made))]
    x = torch.randn(tokens, sizes.HIDDEN, dtype=torch.float16, device=device)
    touched = flops = 0.0
    for layer, (chosen, _) in zip(made, routed, strict=True):
        widths = layer.layout.widths
        touched += sum(
            expert_bytes(widths[e], kind.format_name, kind.group_size) for e in np.unique(chosen)
        )
        flops += sum(6 * sizes.HIDDEN * widths[e] for e in chosen.ravel())
    row: dict[str, Any] = {"layer": name, "format": kind.format_name}
    row |= {"group": kind.group_size, "tokens": tokens}
    devices = [[torch.from_numpy(array).to(device) for array in pair] for pair in routed]
    # The path that the library would choose.
    row["path"] = Call(made[0], x, *devices[0]).path
    for path in ("rows", "tiles") if tokens <= DECODE_TOKENS else ("tiles",):
        calls = [
            Call(layer, x, *of_layer, path=path)
            for layer, of_layer in zip(made, devices, strict=True)
        ]
        row[f"{path}_us"] = graph_seconds([call.run for call in calls]) / len(made) * 1e6
    row["us"] = row[f"{row['path']}_us"]
    seconds = row["us"] * len(made) / 1e6
    row["of_copy"] = touched / seconds / rates.copy_bytes_per_s
    row["of_matrix_rate"] = flops / seconds / rates.flops_per_s
    return row


def _fused_rows(device: str) -> list[dict[str, Any]]:
    """Rows of the peer in float16, each the better of two block sizes.

    `few_from_many` is the largest difference of the two results over the largest value: a small one
    shows that both computed the layer.
    """
    dtype = torch.float16

    def weights(*shape: int) -> torch.Tensor:
        return torch.randn(sizes.EXPERTS, *shape, dtype=dtype, device=device) * 0.02

    made = [
        (weights(2 * sizes.MEAN_WIDTH, sizes.HIDDEN), weights(sizes.HIDDEN, sizes.MEAN_WIDTH))
        for _ in range(_copies(1))
    ]
    rows = []
    for tokens in TOKENS:
        x = torch.randn(tokens, sizes.HIDDEN, dtype=dtype, device=device)
        row: dict[str, Any] = {"layer": FUSED, "format": "float16", "group": 0, "tokens": tokens}
        results = []
        for name, blocks in (("few", FEW), ("many", MANY)):
            calls = []
            for draw, pair in enumerate(made[: _copies(tokens)]):
                chosen, weight = (torch.from_numpy(a).to(device) for a in routing(tokens, draw))
                calls.append(FusedMoe(x, *pair, chosen, weight, blocks))
            row[f"{name}_us"] = graph_seconds([call.run for call in calls]) / len(calls) * 1e6
            results.append(calls[0].y)
        row["us"] = min(row["few_us"], row["many_us"])
        first, second = (y.float() for y in results)
        row["few_from_many"] = float((first - second).abs().max() / first.abs().max())
        rows.append(row)
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds the peer's time over ours to our rows of one width in 16 bits."""
    peer = {row["tokens"]: row["us"] for row in rows if row["layer"] == FUSED}
    for row in rows:
        if row["layer"] == UNIFORM and row["format"] == "bfloat16" and row["tokens"] in peer:
            row["times_as_fast_as_fused"] = peer[row["tokens"]] / row["us"]
    return rows


def _copies(tokens: int) -> int:
    return sizes.EXPERTS // sizes.TOP_K if tokens <= DECODE_TOKENS else FEW_COPIES
