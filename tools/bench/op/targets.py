"""Measures the operator and prints the figures beside their targets.

    python -m tools.bench.op.targets --out DIR --ggml SOURCES --realtime

Each group of candidates is one run of `tools.bench.op`, so that ratios are of one process. Its JSON
is kept in DIR and used again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GROUPS = {
    "int4": (1, 8, [1], ["packed_int4", "packed_int4_uniform", "ragged_int4"]),
    "int8": (1, 4, [1], ["packed_int8", "ragged_int8"]),
    "float32": (1, 2, [1], ["packed_float32", "ragged_float32"]),
    "padded": (1, 4, [1, 128], ["packed_int4", "body_int4", "qmoe_int4_padded"]),
    "ggml": (1, 8, [1, 128], ["packed_int4_uniform", "ggml_q4_0"]),
    "whole": (1, 4, [1], ["packed_int4_shared", "ggml_q4_0_dense_shared"]),
    "two": (2, 4, [1, 128], ["packed_int4", "packed_int8"]),
}
"""Threads, layers, tokens and candidates of each run. Many layers make the overhead of a session
small, as in a whole model; memory limits them."""

Runs = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Target:
    what: str
    least: float
    measure: Callable[[Runs], float]

    @property
    def is_limit(self) -> bool:
        return self.what.startswith("resident")


def measured(runs: Runs, group: str, name: str, tokens: int) -> dict[str, Any]:
    (result,) = (r for r in runs[group]["results"] if r["tokens"] == tokens)
    figures: dict[str, Any] = result["measured"][name]
    return figures


def share(group: str, name: str) -> Callable[[Runs], float]:
    return lambda runs: measured(runs, group, name, 1)["share_of_read"]


def faster(group: str, name: str, peer: str, tokens: int) -> Callable[[Runs], float]:
    def ratio(runs: Runs) -> float:
        # Each round draws its own experts; the medians are of the same distribution.
        ours, theirs = (measured(runs, group, n, tokens)["wall"]["median_s"] for n in (name, peer))
        return float(theirs / ours)

    return ratio


def two_threads_prefill(runs: Runs) -> float:
    one = measured(runs, "padded", "packed_int4", 128)["wall"]["median_s"]
    return float(one / measured(runs, "two", "packed_int4", 128)["wall"]["median_s"])


def resident(group: str, name: str) -> Callable[[Runs], float]:
    def ratio(runs: Runs) -> float:
        loaded = runs[group]["candidates"][name]
        return float(sum(loaded["resident_after_use_bytes"].values()) / loaded["weight_bytes"])

    return ratio


PADDED, PEER = "qmoe_int4_padded", "ggml_q4_0"
TARGETS = (
    Target("decode int4, share of the read bandwidth", 0.85, share("int4", "packed_int4")),
    Target("the same, uniform 704", 0.85, share("int4", "packed_int4_uniform")),
    Target("the same, portable layout", 0.85, share("int4", "ragged_int4")),
    Target("decode int8, share of the read bandwidth", 0.85, share("int8", "packed_int8")),
    Target("the same, portable layout", 0.85, share("int8", "ragged_int8")),
    Target("decode int4 against padded QMoE", 3.0, faster("padded", "packed_int4", PADDED, 1)),
    Target(
        "decode int4 against llama.cpp Q4_0, uniform 704",
        1.4,
        faster("ggml", "packed_int4_uniform", PEER, 1),
    ),
    Target("prefill 128 int4 against QMoE", 3.5, faster("padded", "packed_int4", PADDED, 128)),
    Target(
        "prefill 128 int4 against llama.cpp Q4_0, uniform 704",
        3.0,
        faster("ggml", "packed_int4_uniform", PEER, 128),
    ),
    Target("two threads, decode int4, share of read", 0.85, share("two", "packed_int4")),
    Target("two threads, decode int8, share of read", 0.85, share("two", "packed_int8")),
    Target("two threads, prefill int4 against one", 1.8, two_threads_prefill),
    Target(
        "whole layer with the shared expert against llama.cpp dense, decode",
        1.6,
        faster("whole", "packed_int4_shared", "ggml_q4_0_dense_shared", 1),
    ),
    Target("float32 decode, share of read", 0.9, share("float32", "packed_float32")),
    Target("resident over the file, int4 portable", 1.15, resident("int4", "ragged_int4")),
    Target("resident over the file, int4 packed", 1.15, resident("int4", "packed_int4")),
    Target("portable body, decode, against QMoE", 1.0, faster("padded", "body_int4", PADDED, 1)),
)


def run_group(group: str, arguments: argparse.Namespace) -> dict[str, Any]:
    path = arguments.out / f"{group}.json"
    threads, layers, tokens, candidates = GROUPS[group]
    if not path.exists():
        command = [sys.executable, "-m", "tools.bench.op", "--out", path, "--threads", str(threads)]
        command += ["--layers", str(layers), "--rounds", str(arguments.rounds)]
        command += ["--tokens", *map(str, tokens), "--candidates", *candidates]
        command += ["--realtime"] if arguments.realtime else []
        command += ["--ggml", arguments.ggml] if arguments.ggml else []
        subprocess.run(command, check=True)
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs' JSON")
    parser.add_argument(
        "--ggml", type=Path, help="sources of ggml, as for tools.bench.op (default: no llama.cpp)"
    )
    parser.add_argument("--realtime", action="store_true")
    parser.add_argument("--rounds", type=int, default=80)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = {}
    for group, (*_, candidates) in GROUPS.items():
        if arguments.ggml is not None or not any(c.startswith("ggml") for c in candidates):
            runs[group] = run_group(group, arguments)
    print("| | target | measured | |\n|---|---|---|---|")
    for target in TARGETS:
        try:
            value = target.measure(runs)
        except KeyError:
            print(f"| {target.what} | | not measured | |")
            continue
        reached = value <= target.least if target.is_limit else value >= target.least
        sign = "≤" if target.is_limit else "≥"
        verdict = "yes" if reached else "no"
        print(f"| {target.what} | {sign} {target.least} | {value:.2f} | {verdict} |")


if __name__ == "__main__":
    main()
