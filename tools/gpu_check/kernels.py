"""How fast the Triton kernels are on the device; the library runs binaries of the same sources."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from moe_export.formats import GRIDS
from moe_export.op.spec import Format
from moe_export.op.triton import plan
from moe_export.op.triton.driver import Call, DeviceLayer
from moe_export.op.triton.packed import PackedLayer, codes_per_byte, padded_depth
from tools.bench_op.models import EXPERTS, FULL_WIDTH, HIDDEN, MEAN_WIDTH, TOP_K, skewed_widths

REPEATS = 50
WARM_UP = 5
TOKENS = (1, 4, 16, 64, 512, 4096)
DECODE_TOKENS = 64
"""Up to here what counts is bytes, beyond it operations."""

SKEWED, UNIFORM, PADDED = "skewed", "uniform 704", "padded 1408"
SHAPES_OF: dict[Format, tuple[str, ...]] = {
    "float16": (SKEWED,),
    "bfloat16": (SKEWED, UNIFORM, PADDED),
    "int8": (SKEWED,),
    "int4": (SKEWED, UNIFORM, PADDED),
    "uint8": (SKEWED,),
    "uint4": (SKEWED,),
    "nf4": (SKEWED,),
}
"""Which widths each format is timed at: all that the time allows."""

LAYERS = 24
GROUP = 32


def layers() -> list[dict[str, Any]]:
    """A layer at several numbers of tokens, in a captured graph, over several sets of weights."""
    copy_bytes_per_s, flops_per_s = _copy_rate(), _matrix_rate()
    rows: list[dict[str, Any]] = [
        {"layer": "device copy", "bytes_per_s": copy_bytes_per_s},
        {"layer": "bf16 matrix product", "flops_per_s": flops_per_s},
    ]
    skewed = tuple(int(w) for w in skewed_widths(np.random.default_rng(0)))
    widths = {
        SKEWED: skewed,
        UNIFORM: (MEAN_WIDTH,) * EXPERTS,
        PADDED: (FULL_WIDTH,) * EXPERTS,
    }
    for format_name, names in SHAPES_OF.items():
        for name in names:
            rows += [
                _time_layer(format_name, name, widths[name], tokens, copy_bytes_per_s, flops_per_s)
                for tokens in TOKENS
            ]
    return rows


def _time_layer(
    format_name: Format,
    name: str,
    widths: tuple[int, ...],
    tokens: int,
    copy_bytes_per_s: float,
    flops_per_s: float,
) -> dict[str, Any]:
    # More sets than fit into the cache of second level, as the layers of a model have.
    copies = 8 if tokens <= DECODE_TOKENS else 2
    packs = [_random_layer(widths, format_name, seed) for seed in range(copies)]
    indices, weights = _routing(tokens)
    x = torch.randn(tokens, HIDDEN, dtype=torch.float16, device="cuda")
    row: dict[str, Any] = {"layer": name, "format": format_name, "tokens": tokens}
    chosen = np.unique(indices.cpu().numpy())
    pairs = indices.cpu().numpy().ravel()
    touched = sum(_expert_bytes(widths[e], format_name) for e in chosen)
    flops = sum(6 * HIDDEN * widths[e] for e in pairs)
    for path in ("rows", "tiles") if tokens <= DECODE_TOKENS else ("tiles",):
        calls = [Call(layer, x, indices, weights, path=path) for layer in packs]  # type: ignore[arg-type]
        seconds = _graph_seconds([call.run for call in calls]) / copies
        row[f"{path}_us"] = seconds * 1e6
        row[f"{path}_of_copy"] = touched / seconds / copy_bytes_per_s
        row[f"{path}_of_matrix_rate"] = flops / seconds / flops_per_s
    row["chosen_path"] = plan.path_of(tokens)
    del packs
    torch.cuda.empty_cache()
    return row


def model() -> list[dict[str, Any]]:
    """The MoE layers of a model of Qwen1.5-MoE's size; attention and the rest are not in it."""
    skewed = tuple(int(w) for w in skewed_widths(np.random.default_rng(0)))
    rows = []
    for name, widths, format_name in (
        ("dense", (FULL_WIDTH,) * EXPERTS, "bfloat16"),
        ("50 %", skewed, "bfloat16"),
        ("50 % int4", skewed, "int4"),
    ):
        made = [_random_layer(widths, format_name, seed) for seed in range(LAYERS)]  # type: ignore[arg-type]
        bytes_ = sum(t.nbytes for layer in made for t in layer.tensors.values())
        for batch in (1, 8, 64):
            indices, weights = _routing(batch)
            x = torch.randn(batch, HIDDEN, dtype=torch.float16, device="cuda")
            calls = [Call(layer, x, indices, weights) for layer in made]
            seconds = _graph_seconds([call.run for call in calls])
            rows.append(
                {
                    "experts_of_24_layers": name,
                    "batch": batch,
                    "tokens_per_s": batch / seconds,
                    "weight_bytes": bytes_,
                }
            )
        del made
        torch.cuda.empty_cache()
    return rows


def _routing(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(tokens)
    order = random.random((tokens, EXPERTS)).argsort(axis=1)[:, :TOP_K].copy()
    weights = random.random((tokens, TOP_K)).astype(np.float16)
    return torch.from_numpy(order).cuda(), torch.from_numpy(weights).cuda()


def _expert_bytes(width: int, format_name: Format) -> float:
    grid = GRIDS.get(format_name)
    bits = 16.0
    if grid is not None:
        bits = grid.bits + (16 + 8 * grid.has_zero_point) / GROUP
    return 3 * HIDDEN * width * bits / 8


def _random_layer(widths: tuple[int, ...], format_name: Format, seed: int) -> DeviceLayer:
    """Random weights made on the device; packing real ones would take longer than the timing."""
    rows, count = sum(widths), len(widths)
    generator = torch.Generator("cuda").manual_seed(seed)
    depth = padded_depth(HIDDEN, format_name)
    depths = [padded_depth(w, format_name) for w in widths]
    groups = [-(-w // GROUP) for w in widths]
    grid = GRIDS.get(format_name)

    def codes(size: int, end: int = 256) -> torch.Tensor:
        kind = torch.uint8
        return torch.randint(0, end, (size,), dtype=kind, device="cuda", generator=generator)

    def values(size: int) -> torch.Tensor:
        if grid is not None:
            return codes(size // codes_per_byte(format_name))
        dtype = torch.float16 if format_name == "float16" else torch.bfloat16
        return torch.randn(size, dtype=dtype, device="cuda", generator=generator) * 0.02

    def starts(sizes: list[int]) -> list[int]:
        return [0, *np.cumsum(sizes)[:-1].tolist()]

    def scales(size: int) -> torch.Tensor:
        size = 16 if grid is None else size
        return torch.full((size,), 2.0**-8, dtype=torch.float16, device="cuda")

    def zeros(size: int) -> torch.Tensor:
        has_zero_point = grid is not None and grid.has_zero_point
        return codes(size if has_zero_point else 16, 16)

    table = np.array([widths, starts(list(widths)), starts(depths), starts(groups)], np.int32)
    roles = ("gate", "up", "down")
    packed = PackedLayer(
        format_name=format_name,
        group_size=0 if grid is None else GROUP,
        hidden_size=HIDDEN,
        widths=widths,
        **dict.fromkeys(roles, np.zeros(0, np.uint8)),
        **dict.fromkeys([f"{role}_scale" for role in roles], np.zeros(0, np.float16)),
        **dict.fromkeys([f"{role}_zero" for role in roles], np.zeros(0, np.uint8)),
        codebook=np.zeros(0, np.float32),
        table=table.reshape(4, count),
    )
    codebook = np.zeros(16, np.float32) if grid is None or grid.codebook is None else grid.codebook
    tensors = {
        "codebook": torch.from_numpy(codebook).cuda(),
        "table": torch.from_numpy(packed.table).cuda(),
    }
    for role in roles:
        size = sum(depths) * HIDDEN if role == "down" else rows * depth
        of_groups = sum(groups) * HIDDEN if role == "down" else rows * HIDDEN // GROUP
        tensors[role] = values(size)
        tensors[f"{role}_scale"], tensors[f"{role}_zero"] = scales(of_groups), zeros(of_groups)
    return DeviceLayer(packed, tensors)


def _graph_seconds(jobs: list[Callable[[], Any]]) -> float:
    """Median of one replay of a graph of all jobs."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for job in jobs:
            job()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for job in jobs:
            job()
    return _median_seconds(graph.replay)


def _median_seconds(job: Callable[[], Any]) -> float:
    for _ in range(WARM_UP):
        job()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        job()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _copy_rate() -> float:
    """Bytes read and written per second by a copy within the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source))


def _matrix_rate() -> float:
    """Operations per second of a large product in bfloat16."""
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b)
