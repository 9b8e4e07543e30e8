"""Speed of whole models on the CPU, with panels or ONNX Runtime's nodes outside the experts.

    python -m tools.pages speed HOME [--layers N] [--rounds N]

Models have the shapes of Qwen1.5-MoE-A2.7B with experts of half the width and random weights, so
they say nothing about accuracy. HOME keeps them; a second run times them again. Give the command
real-time priority (`chrt --fifo 1`) on a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from moe_export.bench.models import Model
from moe_export.bench.process import ModelProcess
from moe_export.bench.requests import Sizes
from moe_export.families import spec_of
from moe_export.graph.packed_tensor import packed_layout
from moe_export.op.library import describe, register
from moe_export.ort.session import OrtModel
from moe_export.recipe import QuantizeSettings
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.system.machine import machine, versions
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.synthetic_checkpoint import make as make_checkpoint
from moe_export.variants import MODEL_FILE
from tools.bench.op.reading import Reading, compiled_reader
from tools.pages.page import rounded, write_page

NAME = "speed"
FORMATS = ("int8", "int4")
LINEAR = ("standard", "panels")
DTYPE = "float16"
WIDTH = 704
THREADS = (1, 2)
CASES = {
    "decode": Sizes(batch=1, prompt_tokens=64, new_tokens=16),
    "decode, batch 8": Sizes(batch=8, prompt_tokens=16, new_tokens=8),
    "prefill of 128": Sizes(batch=1, prompt_tokens=128, new_tokens=1),
}
"""Name of a case, and its sizes; a prefill is timed by its prompt, the others by a step."""

KINDS = {"attention.qkv": "query, key, value", "attention.out": "output", "logits": "lm_head"}
"""Part of a node's name, and its name in the table."""

EXPERTS = "experts"
STEPS = 16


INTRODUCTION = (
    "`python -m tools.pages speed HOME --layers {layers}` made this page and "
    "[speed.json](data/speed.json): models of the shapes of Qwen1.5-MoE-A2.7B with {layers} "
    "layers, experts of width {width} in int4, random weights, the packed layout and float16. So "
    "it is about speed alone; [quantization.md](quantization.md) has what formats cost. `standard` "
    "has ONNX Runtime's `MatMulNBits` for attention and lm_head, `panels` has "
    "[`LinearPacked`](../reference/operator.md#linear)."
)
NODES = (
    "Medians of ONNX Runtime's profiler over a few steps. The plain read is the mean of one before "
    "and one after. Nodes without quantized weights are left out."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the folder of the models, their depth and the number of rounds."""
    parser.add_argument("home", type=Path, metavar="HOME", help="folder of the models")
    parser.add_argument("--layers", type=int, default=2, help="number of layers (default: 2)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: 5)")


def make(arguments: argparse.Namespace) -> None:
    """Makes the models that are missing, times them and writes the page."""
    prepare(arguments.home, arguments.layers)
    data = rounded(measured(arguments.home, arguments.layers, arguments.rounds))
    write_page(NAME, data, markdown(data))


def prepare(home: Path, layers: int) -> None:
    """Writes the models of every format and kind of node that are not there yet."""
    wanted = [
        (form, linear)
        for form in FORMATS
        for linear in LINEAR
        if not (folder(home, form, linear) / MODEL_FILE).exists()
    ]
    if not wanted:
        return
    source = home / "source"
    if not source.exists():
        config = config_of("qwen2_moe", "qwen1.5-moe-a2.7b", layers)
        make_checkpoint(config | {"moe_intermediate_size": WIDTH}, source)
    for form in FORMATS:
        quantized = home / f"quantized_{form}"
        for linear in (linear for other, linear in wanted if other == form):
            if not quantized.exists():
                quantized.mkdir()
                settings = QuantizeSettings(experts="int4", dense=form, method="rtn")
                folders = {"prune": source}
                quantize(Job(settings=settings, model=source, folders=folders, out=quantized))
            out = folder(home, form, linear)
            export_model(quantized, out, DTYPE, layout="packed", linear=linear)  # type: ignore[arg-type]
        shutil.rmtree(quantized, ignore_errors=True)
    shutil.rmtree(source)


def folder(home: Path, form: str, linear: str) -> Path:
    """Folder of a model."""
    return home / f"{form}_{linear}"


def measured(home: Path, layers: int, rounds: int) -> dict[str, Any]:
    """Times of whole models, and of the nodes of each."""
    times = {
        form: {threads: turns(home, form, threads, rounds) for threads in map(str, THREADS)}
        for form in FORMATS
    }
    nodes = {
        f"{form} {linear}": node_rates(home, form, linear) for form in FORMATS for linear in LINEAR
    }
    return {
        "machine": machine() | {"load_average": os.getloadavg()},
        "versions": versions(),
        "kernel": describe().kernel,
        "priority": os.sched_getscheduler(0) == os.SCHED_FIFO,
        "layers": layers,
        "rounds": rounds,
        "times": times,
        "nodes": nodes,
    }


def turns(home: Path, form: str, threads: str, rounds: int) -> dict[str, Any]:
    """Seconds of a case by kind of node and round; the two kinds take turns.

    The first round, which warms up, is left out.
    """
    models = {linear: Model(linear, folder(home, form, linear)) for linear in LINEAR}
    processes = {linear: ModelProcess(model, int(threads)) for linear, model in models.items()}
    try:
        seconds: dict[str, dict[str, list[float]]] = {
            case: {linear: [] for linear in LINEAR} for case in CASES
        }
        for number in range(rounds + 1):
            for case, sizes in CASES.items():
                key = "prefill_s" if case.startswith("prefill") else "step_s"
                for linear, process in processes.items():
                    seconds[case][linear] += [process.run(sizes)[key]] if number else []
        resident = {
            linear: process.loaded["resident"]
            / Model(linear, folder(home, form, linear)).file_bytes
            for linear, process in processes.items()
        }
        return {"seconds": seconds, "resident_over_file": resident}
    finally:
        for process in processes.values():
            process.close()


def node_rates(home: Path, form: str, linear: str) -> dict[str, Any]:
    """Bytes and seconds of the nodes that read weights in a decoding step, on one thread.

    A plain read of as many bytes as all nodes together runs before and after.
    """
    directory = folder(home, form, linear)
    sizes = weight_bytes(directory)
    with tempfile.TemporaryDirectory() as temporary:
        reading = Reading(compiled_reader(Path(temporary)), 1)
        before = read_rate(reading)
        profile = profiled(directory, Path(temporary))
        after = read_rate(reading)
    seconds: dict[str, list[float]] = {}
    for name, duration_s in profile:
        seconds.setdefault(name, []).append(duration_s)
    kinds: dict[str, dict[str, float]] = {}
    for name, node_bytes in sizes.items():
        kind = kind_of(name)
        row = kinds.setdefault(kind, {"bytes": 0.0, "seconds": 0.0})
        row["bytes"] += node_bytes
        row["seconds"] += float(np.median(seconds[name]))
    return {"kinds": kinds, "read_bytes_per_s": [before, after]}


def kind_of(name: str) -> str:
    """Name of a node's kind in the table."""
    return next((kind for part, kind in KINDS.items() if part in name), EXPERTS)


def weight_bytes(directory: Path) -> dict[str, float]:
    """Bytes of weights that a token reads, by node; every expert is chosen equally often."""
    graph = onnx.load(directory / MODEL_FILE, load_external_data=False).graph
    stored = {
        tensor.name: int(entry.value)
        for tensor in graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    }
    spec = spec_of(json.loads((directory / "config.json").read_text()))
    sizes: dict[str, float] = {}
    for node in graph.node:
        if node.op_type == "RaggedMoEPacked":
            layout = packed_layout(spec, int(node.name.split(".")[1]), DTYPE)
            *routed, shared = map(layout.expert_bytes, layout.all_widths)
            sizes[node.name] = sum(routed) * spec.top_k / spec.num_experts + shared
        elif node.op_type in ("MatMulNBits", "LinearPacked"):
            sizes[node.name] = float(sum(stored.get(name, 0) for name in node.input))
    return sizes


def read_rate(reading: Reading) -> float:
    """Bytes per second of a plain read, median of a few."""
    size_bytes = 1 << 27
    times_s = [_seconds(lambda: reading.read(size_bytes)) for _ in range(7)]
    return size_bytes / float(np.median(times_s))


def _seconds(job: Callable[[], Any]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started


def profiled(directory: Path, temporary: Path) -> list[tuple[str, float]]:
    """Names and seconds of the nodes in some decoding steps, by ONNX Runtime's profiler."""
    model = OrtModel(directory, threads=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.log_severity_level = 3
    options.profile_file_prefix = str(temporary / "profile")
    register(options)
    model.session = onnxruntime.InferenceSession(
        str(directory / MODEL_FILE), options, providers=["CPUExecutionProvider"]
    )
    vocabulary = model.session.get_outputs()[0].shape[-1]
    cache = model.empty_cache(1)
    for step in range(STEPS):
        ids = np.random.default_rng(step).integers(0, vocabulary, (1, 1))
        _, cache = model.step(ids, np.ones((1, step + 1), np.int64), cache)
    events = json.loads(Path(model.session.end_profiling()).read_text())
    end = "_kernel_time"
    return [
        (event["name"].removesuffix(end), event["dur"] / 1e6)
        for event in events
        if event["name"].endswith(end)
    ]


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its figures."""
    found, layers = data["machine"], data["layers"]
    priority = "real-time priority, " if data["priority"] else ""
    conditions = (
        f"{found['cpu']}, {found['cores']} cores, {priority}load {found['load_average'][0]:.0f} of "
        f"other work: compare ratios, not times. ONNX Runtime {data['versions']['onnxruntime']}, "
        f"kernel {data['kernel']}. Ratios are medians of {data['rounds']} rounds in which both "
        "models take turns, with the least and the greatest."
    )
    parts = [
        "# Speed of whole models on the CPU",
        INTRODUCTION.format(layers=layers, width=WIDTH),
        conditions,
        "## Whole models",
        table(speed_table(data)),
        "## Nodes of a decoding step, one thread",
        NODES,
        table(node_table(data)),
        "## Memory",
        table(memory_table(data)),
    ]
    return "\n\n".join(parts) + "\n"


def speed_table(data: Mapping[str, Any]) -> Table:
    """Times, and speed of panels over standard nodes."""
    rows = []
    for form, by_threads in data["times"].items():
        for threads, result in by_threads.items():
            for case, seconds in result["seconds"].items():
                standard, panels = (np.array(seconds[linear]) for linear in LINEAR)
                ratio = standard / panels
                rows.append(
                    [
                        form,
                        threads,
                        case,
                        f"{np.median(standard) * 1e3:.1f}",
                        f"{np.median(panels) * 1e3:.1f}",
                        f"{np.median(ratio):.2f} ({ratio.min():.2f} to {ratio.max():.2f})",
                    ]
                )
    head = [
        "attention and lm_head",
        "threads",
        "case",
        "standard, ms",
        "panels, ms",
        "times as fast",
    ]
    return Table(head, rows)


def node_table(data: Mapping[str, Any]) -> Table:
    """Rates of the nodes that read weights."""
    rows = []
    for name, result in data["nodes"].items():
        read = float(np.mean(result["read_bytes_per_s"]))
        for kind, row in result["kinds"].items():
            rate = row["bytes"] / row["seconds"]
            rows.append(
                [
                    name,
                    kind,
                    f"{row['bytes'] / 1e6:.0f}",
                    f"{row['seconds'] * 1e3:.2f}",
                    f"{rate / 1e9:.1f}",
                    f"{rate / read:.2f}",
                ]
            )
    head = ["model", "nodes", "MB", "ms", "GB/s", "of a plain read"]
    return Table(head, rows)


def memory_table(data: Mapping[str, Any]) -> Table:
    """Resident memory after a short decoding."""
    rows = [
        [form, linear, f"{value:.2f}"]
        for form, by_threads in data["times"].items()
        for linear, value in by_threads[str(THREADS[0])]["resident_over_file"].items()
    ]
    return Table(["attention and lm_head", "nodes", "resident / file"], rows)
