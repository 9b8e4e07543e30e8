"""The Triton kernels on the device: whether they are right, and how fast."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.op.spec import Format
from moe_export.op.triton import plan
from moe_export.op.triton.driver import Call, DeviceLayer
from moe_export.op.triton.packed import PackedLayer, pack, padded_depth
from tests.cuda.formats import CUDA_KINDS
from tests.op.cases import CASES, Inputs, inputs_of
from tests.op.executors import run_reference
from tests.op.tolerance import error_bound
from tools.bench_op.models import EXPERTS, FULL_WIDTH, HIDDEN, MEAN_WIDTH, TOP_K, skewed_widths

REPEATS = 50
WARM_UP = 5
TOKENS = (1, 4, 16, 64, 512, 4096)
DECODE_TOKENS = 64
"""Up to here what counts is bytes, beyond it operations."""

LAYERS = 24
GROUP = 32


def conformance() -> list[dict[str, Any]]:
    """Every case and kind, by every path; one row for each kind."""
    rows = []
    for kind in CUDA_KINDS:
        worst, failures = 0.0, []
        for case in (case for case in CASES if case.activation == "swiglu"):
            inputs = inputs_of(case, *kind)
            bound, expected = error_bound(inputs), run_reference(inputs).astype(np.float64)
            for path, pairs in (("rows", None), ("tiles", 16), ("tiles", 128)):
                y = _run(inputs, path, pairs)  # type: ignore[arg-type]
                error = np.abs(y.astype(np.float64) - expected)
                worst = max(worst, float((error / np.maximum(bound, 1e-300)).max(initial=0)))
                again = _run(inputs, path, pairs)  # type: ignore[arg-type]
                if not (error <= bound).all() or not np.array_equal(y, again):
                    failures.append(f"{case.name}/{path}/{pairs}")
        rows.append(
            {
                "kind": " ".join(map(str, kind)),
                "worst_error_of_bound": worst,
                "failed": " ".join(failures),
                "held": not failures,
            }
        )
    return rows


def _run(inputs: Inputs, path: plan.Path, pairs: int | None) -> NDArray[Any]:
    experts = inputs.experts if inputs.shared is None else (*inputs.experts, inputs.shared)
    packed = pack(experts, inputs.format_name, inputs.group_size, inputs.x.shape[1])
    arrays = (inputs.x, inputs.expert_indices, inputs.routing_weights, inputs.shared_weight)
    tensors = [
        None if a is None else torch.from_numpy(np.ascontiguousarray(a)).cuda() for a in arrays
    ]
    call = Call(DeviceLayer.of(packed, "cuda"), *tensors, path=path, pairs=pairs)  # type: ignore[arg-type]
    y: NDArray[Any] = call.run().cpu().numpy()
    return y


def layers() -> list[dict[str, Any]]:
    """A layer at several numbers of tokens, in a captured graph, over several sets of weights."""
    copy_bytes_per_s, flops_per_s = _copy_rate(), _matrix_rate()
    rows: list[dict[str, Any]] = [
        {"layer": "device copy", "bytes_per_s": copy_bytes_per_s},
        {"layer": "bf16 matrix product", "flops_per_s": flops_per_s},
    ]
    skewed = tuple(int(w) for w in skewed_widths(np.random.default_rng(0)))
    widths = {
        "skewed": skewed,
        "uniform 704": (MEAN_WIDTH,) * EXPERTS,
        "padded 1408": (FULL_WIDTH,) * EXPERTS,
    }
    for format_name in ("float16", "bfloat16", "int8", "int4"):
        for name, sizes in widths.items():
            rows += [
                _time_layer(format_name, name, sizes, tokens, copy_bytes_per_s, flops_per_s)
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
    bits = {"float16": 16, "bfloat16": 16, "int8": 8 + 16 / GROUP, "int4": 4 + 16 / GROUP}
    return 3 * HIDDEN * width * bits[format_name] / 8


def _random_layer(widths: tuple[int, ...], format_name: Format, seed: int) -> DeviceLayer:
    """Random weights made on the device; packing real ones would take longer than the timing."""
    rows, count = sum(widths), len(widths)
    generator = torch.Generator("cuda").manual_seed(seed)
    depth = padded_depth(HIDDEN, format_name)
    depths = [padded_depth(w, format_name) for w in widths]
    groups = [-(-w // GROUP) for w in widths]

    def values(size: int) -> torch.Tensor:
        if format_name in ("int8", "int4"):
            size = size // 2 if format_name == "int4" else size
            return torch.randint(
                0, 256, (size,), dtype=torch.uint8, device="cuda", generator=generator
            )
        dtype = torch.float16 if format_name == "float16" else torch.bfloat16
        return torch.randn(size, dtype=dtype, device="cuda", generator=generator) * 0.02

    def starts(sizes: list[int]) -> list[int]:
        return [0, *np.cumsum(sizes)[:-1].tolist()]

    quantized = format_name in ("int8", "int4")
    scale = 2.0**-8

    def scales(size: int) -> torch.Tensor:
        return torch.full((size if quantized else 16,), scale, dtype=torch.float16, device="cuda")

    table = np.array([widths, starts(list(widths)), starts(depths), starts(groups)], np.int32)
    empty = np.zeros(0, np.float16)
    packed = PackedLayer(
        format_name=format_name,
        group_size=GROUP if quantized else 0,
        hidden_size=HIDDEN,
        widths=widths,
        **dict.fromkeys(("gate", "up", "down", "gate_scale", "up_scale", "down_scale"), empty),
        table=table.reshape(4, count),
    )
    tensors = {
        "gate": values(rows * depth),
        "up": values(rows * depth),
        "down": values(sum(depths) * HIDDEN),
        "gate_scale": scales(rows * HIDDEN // GROUP),
        "up_scale": scales(rows * HIDDEN // GROUP),
        "down_scale": scales(sum(groups) * HIDDEN),
        "table": torch.from_numpy(packed.table).cuda(),
    }
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
