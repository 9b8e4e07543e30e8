"""Times whole exported models: prefill and decoding, loading, and memory against the file.

    python -m tools.bench.session pruned=runs/a/export/pruned packed=runs/b/export/pruned
    python -m tools.bench.session body=runs/a/export/pruned@portable --threads 1 --out result.json

Each variant runs in a process of its own, which is loaded once, and the variants take turns, so
that ratios of medians hold even where other work comes and goes. `@portable` runs a variant without
the native library. Memory is what loading and one short decoding added to the process;
`proportional` splits what processes share, as those do that have one packed model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.op.library import describe
from moe_export.ort.session import OrtModel
from moe_export.system.machine import machine, versions


def memory_bytes() -> dict[str, int]:
    text = Path("/proc/self/smaps_rollup").read_text()
    fields = {"resident": "Rss", "proportional": "Pss", "anonymous": "Anonymous"}
    found = {}
    for name, field in fields.items():
        match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
        assert match
        found[name] = int(match[1]) * 1024
    return found


def decode(model: OrtModel, batch: int, prompt: int, new: int) -> dict[str, float]:
    """Seconds of a random prompt, and of each greedy token after it."""
    vocabulary = model.session.get_outputs()[0].shape[-1]
    ids = np.random.default_rng(0).integers(0, vocabulary, (batch, prompt))
    started = time.perf_counter()
    _, cache = model.step(ids, np.ones((batch, prompt), np.int64), model.empty_cache(batch))
    prefill_s = time.perf_counter() - started
    times = []
    for done in range(new):
        # Random tokens: a model of random weights would choose the same one, and experts, for ever.
        ids = np.random.default_rng(done).integers(0, vocabulary, (batch, 1))
        mask = np.ones((batch, prompt + done + 1), np.int64)
        started = time.perf_counter()
        _, cache = model.step(ids, mask, cache)
        times.append(time.perf_counter() - started)
    return {"prefill_s": prefill_s, "step_s": float(np.median(times))}


def work(directory: Path, operator: str, threads: int) -> None:
    """Answers a line of JSON by a line of JSON, until there are no more."""
    import onnxruntime  # noqa: F401, PLC0415 - before memory is counted

    before, started = memory_bytes(), time.perf_counter()
    model = OrtModel(directory, threads=threads, operator=operator)
    load_s = time.perf_counter() - started
    decode(model, 1, 8, 8)
    after = memory_bytes()
    print(json.dumps({"load_s": load_s, **{k: after[k] - before[k] for k in after}}), flush=True)
    for line in sys.stdin:
        print(json.dumps(decode(model, **json.loads(line))), flush=True)


class Worker:
    """A process that holds one variant."""

    def __init__(self, directory: Path, operator: str, threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            "tools.bench.session",
            "--worker",
            directory,
            operator,
            str(threads),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.loaded = self._answer()

    def run(self, **sizes: int) -> dict[str, float]:
        assert self._process.stdin is not None
        print(json.dumps(sizes), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a measuring process ended; its message is above")
        answer: dict[str, float] = json.loads(line)
        return answer


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def bench(variants: dict[str, tuple[Path, str]], arguments: argparse.Namespace) -> dict[str, Any]:
    results, loaded = [], {}
    for threads in arguments.threads:
        workers = {name: Worker(*variant, threads) for name, variant in variants.items()}
        for name, worker in workers.items():
            size = sum(path.stat().st_size for path in variants[name][0].glob("model.onnx*"))
            ratio = worker.loaded["resident"] / size
            loaded[name] = worker.loaded | {"file_bytes": size, "resident_over_file": ratio}
        for batch in arguments.batch:
            sizes = {"batch": batch, "prompt": arguments.prompt, "new": arguments.new}
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
            for number in range(arguments.repeats + 1):
                for name, worker in workers.items():
                    run = worker.run(**sizes)
                    if number > 0:
                        runs[name].append(run)
            results += [
                {
                    "variant": name,
                    "threads": threads,
                    "batch": batch,
                    "prefill_tokens_per_s": spread(
                        [batch * arguments.prompt / run["prefill_s"] for run in found]
                    ),
                    "decode_tokens_per_s": spread([batch / run["step_s"] for run in found]),
                }
                for name, found in runs.items()
            ]
        for worker in workers.values():
            worker.close()
    described = describe()
    return {
        "machine": machine() | {"load_average": os.getloadavg()},
        "versions": versions(),
        "kernel": f"{described.kernel}: {described.reason}",
        "sizes": {"prompt": arguments.prompt, "new": arguments.new, "repeats": arguments.repeats},
        "loaded": loaded,
        "results": results,
    }


def variant(text: str) -> tuple[str, tuple[Path, str]]:
    name, _, rest = text.partition("=")
    directory, _, operator = rest.partition("@")
    if not (Path(directory) / "model.onnx").exists():
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=DIR with a model.onnx in DIR")
    return name, (Path(directory), operator or "native")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", nargs="+", type=variant, metavar="NAME=DIR[@portable]")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: standard output")
    arguments = parser.parse_args()
    text = json.dumps(bench(dict(arguments.variants), arguments), indent=1)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text + "\n")


main()
