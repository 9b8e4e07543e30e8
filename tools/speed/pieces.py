"""Measurements in pieces of a few minutes, each kept in a file as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from moe_export.bench.in_llama_cpp import LlamaModel
from moe_export.bench.models import Model
from moe_export.bench.nodes import nodes_of
from moe_export.bench.process import ModelProcess
from moe_export.bench.requests import Sizes
from moe_export.op.library import describe
from moe_export.ort.decoding import open_cache
from moe_export.ort.session import OrtModel
from moe_export.system.machine import machine, versions
from tools.speed.variants import gguf, models, prepare

Key = TypeVar("Key")

DEEP, FLAT = 6, 2
"""Numbers of layers of the two depths."""

IN_INT4 = ("Q4_0", "unpruned int4", "half int4", "both half int4")
IN_RECIPE = (
    *("Q4_0", "unpruned int4+int8", "half int4+int8", "half int4+int8 MatMulNBits"),
    "planned int4+int8",
)
IN_INT8 = ("Q8_0", "unpruned int8", "half int8")
COPIES = ("Q4_0", "half int4", "half int4@copied")
PROFILED = ("half int4", "unpruned int4")

DECODE = {"decode": Sizes(1, 64, 16)}
LONG = {"decode": Sizes(1, 64, 32)}
SHORT = DECODE | {"batch 4": Sizes(4, 16, 8), "batch 8": Sizes(8, 16, 8)}
PREFILL_128 = {"prefill 128": Sizes(1, 128, 1)}
PREFILL = PREFILL_128 | {"prefill 512": Sizes(1, 512, 1)}
FLAT_CASE = f"decode, {FLAT} layers"
"""Case of the same models with fewer layers, in the same turns."""

PREFILLS = tuple(PREFILL)
"""Cases that are timed by their prompt, others by a step."""


@dataclass(frozen=True)
class Piece:
    """One measurement: models that take turns.

    Attributes:
        name: Name of its file.
        layers: Depth of the models.
        threads: Number of threads.
        models: Names of the models.
        cases: Sizes by name.
        repeats: Turns that count; one more before them does not.
        has_flat: True if the models with `FLAT` layers take turns too when decoding.
    """

    name: str
    layers: int
    threads: int
    models: tuple[str, ...]
    cases: Mapping[str, Sizes]
    repeats: int = 5
    has_flat: bool = False


def pieces() -> Iterator[Piece]:
    """All measurements with models that take turns."""
    for threads in (1, 2):
        end = f"{threads}"
        yield Piece(f"int4-{end}", DEEP, threads, IN_INT4, SHORT)
        yield Piece(f"prefill-{end}", DEEP, threads, IN_INT4[:3], PREFILL, repeats=3)
        yield Piece(
            f"recipe-{end}",
            DEEP,
            threads,
            IN_RECIPE,
            DECODE | {"prefill 128": PREFILL["prefill 128"]},
        )
        yield Piece(f"int8-{end}", DEEP, threads, IN_INT8, DECODE | PREFILL, repeats=3)
        yield Piece(f"copied-{end}", DEEP, threads, COPIES, DECODE | PREFILL_128)
        # Both depths take turns: a line through times of different minutes shows what else ran.
        for name, group in (("int4", IN_INT4), ("recipe", IN_RECIPE)):
            yield Piece(f"depths-{name}-{end}", DEEP, threads, group, LONG, 7, has_flat=True)
    context = {"context 1024": Sizes(1, 1024, 24)}
    yield Piece("context-1", DEEP, 1, ("Q4_0", "half int4"), context, repeats=3)
    context = context | {"context 4096": Sizes(1, 4096, 24)}
    yield Piece("context-2", DEEP, 2, ("Q4_0", "half int4"), context, repeats=2)


def measured(home: Path, libraries: Path, only: list[str] | None) -> dict[str, Any]:
    """Results of all known measurements, by name.

    Args:
        home: Folder of models and results, with a folder for each depth.
        libraries: Folder of llama.cpp's libraries.
        only: Measurements that are made, known or not; all unknown ones if empty, none if None.
    """
    jobs: dict[str, Callable[[], dict[str, Any]]] = {
        piece.name: partial(turns, home, piece, libraries) for piece in pieces()
    }
    jobs["nodes"] = partial(nodes, home)
    jobs["agreement"] = partial(agreement, home, libraries)
    results = home / "results"
    results.mkdir(parents=True, exist_ok=True)
    for name, job in jobs.items():
        path = results / f"{name}.json"
        if only is not None and (name in only or (not only and not path.exists())):
            path.write_text(json.dumps(job() | conditions()))
            print(name, flush=True)
    known = {name: results / f"{name}.json" for name in jobs}
    return {name: json.loads(path.read_text()) for name, path in known.items() if path.exists()}


def conditions() -> dict[str, Any]:
    """Machine, versions, and what else ran."""
    return {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "versions": versions(),
        "kernel": describe().kernel,
        "priority": os.sched_getscheduler(0) == os.SCHED_FIFO,
    }


def turns(home: Path, piece: Piece, libraries: Path) -> dict[str, Any]:
    """Seconds by case and model, a list over turns, and loaded bytes over those of the file."""
    depths = (piece.layers, FLAT) if piece.has_flat else (piece.layers,)
    with ExitStack() as stack:
        processes = {
            (model.name, depth): stack.enter_context(closing(ModelProcess(model, piece.threads)))
            for depth in depths
            for model in _prepared(home / str(depth), depth, piece.models, libraries)
        }
        seconds: dict[str, dict[str, list[float]]] = {}
        for case, sizes in piece.cases.items():
            found = seconds_in_turns(processes, sizes, case in PREFILLS, piece.repeats)
            for (name, depth), own in found.items():
                place = case if depth == piece.layers else FLAT_CASE
                seconds.setdefault(place, {})[name] = own
        resident = {
            model.name: processes[model.name, piece.layers].loaded["resident"] / model.file_bytes
            for model in models(home / str(piece.layers), piece.models, libraries)
        }
    return {"seconds": seconds, "resident_over_file": resident} | _facts(piece)


def _prepared(place: Path, layers: int, names: tuple[str, ...], libraries: Path) -> Iterator[Model]:
    prepare(place, layers, names, libraries)
    yield from models(place, names, libraries)


def _facts(piece: Piece) -> dict[str, Any]:
    return {
        "layers": piece.layers,
        "threads": piece.threads,
        "sizes": {case: asdict(sizes) for case, sizes in piece.cases.items()}
        | ({FLAT_CASE: asdict(piece.cases["decode"])} if piece.has_flat else {}),
    }


def seconds_in_turns(
    processes: Mapping[Key, ModelProcess], sizes: Sizes, prompt: bool, repeats: int
) -> dict[Key, list[float]]:
    """Seconds of each model in turn; the first turn, which warms up, is left out.

    Args:
        processes: Loaded models by key.
        sizes: Sizes of a measurement.
        prompt: True for the seconds of the prompt; False for those of a decoding step.
        repeats: Turns that count.
    """
    key = "prefill_s" if prompt else "step_s"
    found: dict[Key, list[float]] = {name: [] for name in processes}
    for number in range(repeats + 1):
        for name, process in processes.items():
            found[name] += [process.run(sizes)[key]] if number else []
    return found


def nodes(home: Path) -> dict[str, Any]:
    """Times of the nodes of a decoding step, by model, threads and context."""
    place = home / str(DEEP)
    return {
        "nodes": {
            f"{name}, {threads}, {context}": asdict(
                nodes_of(Model(name, place / name), threads, context, 12)
            )
            for name in PROFILED
            for threads, context in ((1, 64), (2, 64), (1, 1024))
        }
    }


def agreement(home: Path, libraries: Path) -> dict[str, Any]:
    """Distance between logits of our export and of llama.cpp for one text, both in 8 bits.

    It shows that both run the same model. The rest is what two roundings differ by.
    """
    place = home / str(FLAT)
    prepare(place, FLAT, ("Q8_0", "unpruned int8"), libraries)
    model = LlamaModel(gguf(place, "Q8_0"), libraries, threads=2)
    ids_1S = np.random.default_rng(0).integers(0, model.vocabulary, (1, 32))
    context = model.open(1, 64)
    context.append(ids_1S)
    theirs_V = context.logits(model.vocabulary)
    context.close()
    cache = open_cache(OrtModel(place / "unpruned int8", threads=2), 1, 64)
    ours_V = np.asarray(cache.prompt(ids_1S), np.float32).reshape(-1)
    return {
        "relative_rms": float(np.linalg.norm(ours_V - theirs_V) / np.linalg.norm(ours_V)),
        "same_token": bool(ours_V.argmax() == theirs_V.argmax()),
    }
