"""Models that take turns, so that ratios of their medians hold on a machine with other work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np

from moe_export.bench.models import Model
from moe_export.bench.process import ModelProcess
from moe_export.bench.requests import Sizes
from moe_export.op.library import describe
from moe_export.reporting.tables import Table
from moe_export.reporting.units import figures, ratio, seconds, size
from moe_export.system.machine import machine, versions


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark.

    Attributes:
        threads: Numbers of threads within an operator, measured one after the other.
        batches: Batch sizes, measured one after the other.
        prompt_tokens: Lengths of each prompt in tokens, measured one after the other.
        new_tokens: Tokens decoded after it.
        repeats: Measurements of each model that count; one more before them does not.
    """

    threads: Sequence[int] = (1, 2)
    batches: Sequence[int] = (1, 8)
    prompt_tokens: Sequence[int] = (128,)
    new_tokens: int = 32
    repeats: int = 5


def bench(models: Sequence[Model], settings: Settings) -> dict[str, Any]:
    """Times every model; each is loaded once for each number of threads.

    Returns:
        Plain values: `machine`, `versions`, `kernel` (the native library's choice), `settings`,
        `loaded` (by name, what loading took with the last number of threads) and `results`, a row
        for each model, number of threads, batch size and prompt with the least, median and greatest
        `prefill_tokens_per_s` and `decode_tokens_per_s`, and of their ratios to the first model's
        in the same turn (`prefill_of_first`, `decode_of_first`).

    Raises:
        MoeExportError: A model does not load, or its process ended.
    """
    results, loaded = [], {}
    for threads in settings.threads:
        with _processes(models, threads) as processes:
            loaded = {model.name: _loaded(model, processes[model.name]) for model in models}
            for batch, prompt in product(settings.batches, settings.prompt_tokens):
                sizes = Sizes(batch, prompt, settings.new_tokens)
                times = _take_turns(processes, sizes, settings.repeats)
                at = {"threads": threads, "batch": batch, "prompt_tokens": prompt}
                results += [
                    {"variant": name, **at, **_speeds(sizes, runs, next(iter(times.values())))}
                    for name, runs in times.items()
                ]
    library = describe()
    return {
        "machine": machine() | {"load_average": os.getloadavg()},
        "versions": versions(),
        "kernel": f"{library.kernel}: {library.reason}",
        "settings": asdict(settings),
        "loaded": loaded,
        "results": results,
    }


def speed_table(result: Mapping[str, Any]) -> Table:
    """Medians of `bench`; ratios are to the first model at the same setting, medians over turns.

    Args:
        result: Result of `bench`.
    """
    rows = []
    for row in result["results"]:
        prefill, decode = (row[f"{phase}_tokens_per_s"]["median"] for phase in PHASES)
        of_first = [ratio(row[f"{phase}_of_first"]["median"]) for phase in PHASES]
        setting = [str(row[key]) for key in ("threads", "batch", "prompt_tokens")]
        cells = [figures(prefill), of_first[0], figures(decode), of_first[1]]
        rows.append([row["variant"], *setting, *cells])
    head = ["model", "threads", "batch", "prompt"]
    head += ["prefill, tok/s", "of the first", "decode, tok/s", "of the first"]
    return Table(head, rows)


def memory_table(result: Mapping[str, Any]) -> Table:
    """File size, time of loading and memory of each model of `bench`.

    Args:
        result: Result of `bench`.
    """
    rows = [
        [
            name,
            size(facts["file_bytes"]),
            seconds(facts["load_s"]),
            # Systems other than Linux do not tell of memory.
            size(facts["resident"]) if "resident" in facts else "–",
            size(facts["proportional"]) if "proportional" in facts else "–",
            ratio(facts["resident_over_file"]) if "resident_over_file" in facts else "–",
        ]
        for name, facts in result["loaded"].items()
    ]
    head = ["model", "file", "loads in", "resident", "proportional", "resident / file"]
    return Table(head, rows)


PHASES = ("prefill", "decode")


@contextmanager
def _processes(models: Sequence[Model], threads: int) -> Iterator[dict[str, ModelProcess]]:
    processes: dict[str, ModelProcess] = {}
    try:
        for model in models:
            processes[model.name] = ModelProcess(model, threads)
        yield processes
    finally:
        for process in processes.values():
            process.close()


def _loaded(model: Model, process: ModelProcess) -> dict[str, float]:
    file_bytes = model.file_bytes
    facts = process.loaded | {"file_bytes": file_bytes}
    if "resident" in facts:
        facts["resident_over_file"] = facts["resident"] / file_bytes
    return facts


def _take_turns(
    processes: Mapping[str, ModelProcess], sizes: Sizes, repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Seconds of every model in turn; the first turn, which warms up, is left out."""
    turns = [
        {name: process.run(sizes) for name, process in processes.items()}
        for _ in range(repeats + 1)
    ]
    return {name: [turn[name] for turn in turns[1:]] for name in processes}


def _speeds(
    sizes: Sizes, runs: Sequence[Mapping[str, float]], first: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Spreads over the turns of one model, beside the turns of the first one."""
    prompt_tokens = sizes.batch * sizes.prompt_tokens
    pairs = list(zip(first, runs, strict=True))
    return {
        "prefill_of_first": _spread([one["prefill_s"] / own["prefill_s"] for one, own in pairs]),
        "decode_of_first": _spread([one["step_s"] / own["step_s"] for one, own in pairs]),
        "prefill_tokens_per_s": _spread([prompt_tokens / run["prefill_s"] for run in runs]),
        "decode_tokens_per_s": _spread([sizes.batch / run["step_s"] for run in runs]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}
