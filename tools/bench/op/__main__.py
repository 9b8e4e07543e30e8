"""Times MoE layers: our operator, its portable body, and ONNX Runtime's own MoE operators.

    python -m tools.bench.op --threads 1 --tokens 1 128 --out result.json

All candidates take turns in one process, with a plain read of as many bytes as our decoding step
moves: the limit of this machine at this moment. A session has several layers, as a model has, and a
time is of all of them, since the time of one layer would be mostly overhead with cold caches. Times
on a machine with other work are upper bounds; ratios of medians within a run are steadier.

llama.cpp takes part with `--ggml DIR`, where DIR holds the unpacked sources of llama-cpp-python
(`pip download --no-binary llama-cpp-python --no-deps llama-cpp-python`). It is compiled there.

Sizes are those of a layer of Qwen1.5-MoE: hidden 2048, 60 experts, 4 per token, width 1408 before
and 704 on average after pruning. ONNX Runtime's operators have one width for all experts, so they
run padded to 1408.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from moe_export.op import library
from moe_export.testing import layer_models as models
from moe_export.testing import layer_sizes as sizes
from tools.bench.op import ggml_peer
from tools.bench.op.reading import Reading, compiled_reader

WARM_UP = 2
ALL_EXPERTS_TOKENS = 128

Job = Callable[[], Any]


def session_of(path: Path, threads: int, native: Path | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Otherwise threads that wait for the next run of one candidate slow the others.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if native is not None:
        library.register(options, native)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def resident_bytes() -> dict[str, int]:
    fields = Path("/proc/self/status").read_text().split()
    return {
        name: int(fields[fields.index(name + ":") + 1]) * 1024 for name in ("RssAnon", "RssFile")
    }


def summary(times_s: list[float]) -> dict[str, float]:
    ordered = np.sort(times_s)
    return {
        "min_s": float(ordered[0]),
        "median_s": float(np.median(ordered)),
        "max_s": float(ordered[-1]),
    }


@dataclass(frozen=True)
class Turn:
    """An execution to time, and the bytes that it moves."""

    run: Job
    moved_bytes: int


def measure(candidates: dict[str, Callable[[], Turn]], rounds: int) -> dict[str, dict[str, Any]]:
    """Wall time, processor time and rate of each candidate; they take turns."""
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    processor: dict[str, list[float]] = {name: [] for name in candidates}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + WARM_UP):
        for name, prepare in candidates.items():
            turn = prepare()
            wall_start, processor_start = time.perf_counter(), time.process_time()
            turn.run()
            processor_s = time.process_time() - processor_start
            wall_s = time.perf_counter() - wall_start
            if number >= WARM_UP:
                wall[name].append(wall_s)
                processor[name].append(processor_s)
                rates[name].append(turn.moved_bytes / wall_s / 1e9)
    return {
        name: {
            "wall": summary(wall[name]),
            "processor": summary(processor[name]),
            "gb_per_s": float(np.median(rates[name])),
        }
        for name in candidates
    }


def bench(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(arguments.seed)
    native = arguments.library or library.library_path()
    widths = sizes.skewed_widths(random)
    reading = Reading(compiled_reader(folder), arguments.threads)
    runners: dict[str, Callable[[dict[str, Any]], Any]] = {}
    loaded: dict[str, Any] = {}
    built = {
        name: models.build(name, widths, arguments.layers, folder / name, random)
        for name in arguments.candidates
        if name not in models.GGML
    }
    if any(name in models.GGML for name in arguments.candidates):
        peer = ggml_peer.built(arguments.ggml)
    if arguments.realtime:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    for name in arguments.candidates:
        if name in models.GGML:
            size = (*models.GGML[name], arguments.threads, random)
            runners[name] = ggml_peer.GgmlLayers(peer, arguments.layers, *size).run
            runners[name](models.feeds(name, ALL_EXPERTS_TOKENS, random))
            continue
        path, weight_bytes = built[name]
        # Memory left over from building would be reused and hide the memory of a session.
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        before, start = resident_bytes(), time.perf_counter()
        ours = name.startswith(("ragged", "packed"))
        session = session_of(path, arguments.threads, native if ours else None)
        runners[name] = functools.partial(session.run, None)
        load_s = time.perf_counter() - start
        after = resident_bytes()
        loaded[name] = {
            "weight_bytes": weight_bytes,
            "load_s": load_s,
            "resident_bytes": {key: after[key] - before[key] for key in after},
        }
        # This many tokens choose every expert, so that all pages of a mapped file are loaded.
        runners[name](models.feeds(name, ALL_EXPERTS_TOKENS, random))
        used = resident_bytes()
        loaded[name]["resident_after_use_bytes"] = {key: used[key] - before[key] for key in used}

    def prepare(name: str, tokens: int) -> Turn:
        fed = models.feeds(name, tokens, random)
        # Panels of experts that several tokens chose are read once.
        chosen = np.unique(fed["expert_indices"]) if "expert_indices" in fed else None
        moved = models.moved_bytes(name, widths, chosen) * arguments.layers
        return Turn(lambda: runners[name](fed), moved)

    results = []
    for tokens in arguments.tokens:
        read_bytes = models.moved_bytes("ragged_int4", widths, None) * arguments.layers
        turns: dict[str, Callable[[], Turn]] = {
            name: functools.partial(prepare, name, tokens) for name in runners
        }
        turns["read"] = lambda size=read_bytes: Turn(lambda: reading.read(size), size)
        rounds = arguments.rounds if tokens <= 8 else max(3, arguments.rounds // 20)
        measured = measure(turns, rounds)
        for figures in measured.values():
            if tokens == 1:
                figures["share_of_read"] = figures["gb_per_s"] / measured["read"]["gb_per_s"]
            else:
                del figures["gb_per_s"]
        results.append({"tokens": tokens, "rounds": rounds, "measured": measured})
    described = library.describe(native)
    return {
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "system": platform.platform(),
        },
        "versions": {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__},
        "kernel": f"{described.kernel}: {described.reason}",
        "threads": arguments.threads,
        "realtime": arguments.realtime,
        "layers": arguments.layers,
        "shapes": sizes.SHAPES | {"widths": [int(width) for width in widths]},
        "candidates": loaded,
        "results": results,
    }


def processor_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--rounds", type=int, default=100, help="of decoding steps")
    parser.add_argument(
        "--realtime", action="store_true", help="before all other processes; needs the privilege"
    )
    parser.add_argument("--candidates", nargs="+", default=models.DEFAULT, choices=models.ALL)
    parser.add_argument(
        "--ggml", type=Path, help="unpacked sources of llama-cpp-python, for the ggml candidates"
    )
    parser.add_argument("--library", type=Path, help="default: that of the installed package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: standard output")
    arguments = parser.parse_args()
    if arguments.ggml is None and any(name in models.GGML for name in arguments.candidates):
        parser.error("the ggml candidates need --ggml")
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(bench(arguments, Path(folder)), indent=1)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text + "\n")


main()
