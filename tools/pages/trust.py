"""Hostile inputs, kills, full disks, tampering and lost workers: what was tried, what came of it.

    python -m tools.trust fuzz --cases 10000 --out fuzz.json    (and kills, disks, ...)
    python -m tools.pages trust fuzz.json kills.json ...

Several files of one campaign are added up; campaigns without a file stay as they were.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import size
from tools.pages.page import data_file, read_data, rounded, write_page
from tools.trust.fuzz import KINDS
from tools.trust.verdict import BAD, DONE, REFUSED

NAME = "trust"

INTRODUCTION = (
    "Made by `python -m tools.trust CAMPAIGN --out FILE` for every campaign, and "
    "`python -m tools.pages trust FILE ...`. A slice of the first table runs in the tests "
    "(`tests/fuzz`); every case is made again from its number. All of it ran on a busy machine: "
    "{cpu}, {cores} cores, {memory}; Python {python}, torch {torch}, transformers {transformers}, "
    "ONNX Runtime {onnxruntime}."
)

FUZZ = (
    "Each case is one changed file or command line, and the commands that read it run in a process "
    "of their own. *Refused*: one printable sentence and the exit code of its kind. *Done*: exit "
    "code 0, and another reader agrees: transformers on the logits of a changed config "
    "and on tokens, safetensors on tensors, Python's `json` on documents, the recipe on "
    "what `show` prints; a changed run directory is made again to the same bytes, or `verify` "
    "notices it. *Bad*: a traceback, a crash, more than 10 s of processor time, more than 2 GiB, "
    "no sentence, or exit code 0 with a wrong result. `generate` and `status` do not hash what "
    "they read; `verify` does. Windows of texts and Parquet are judged by their ends alone."
)
OPEN = (
    "The bad cases of this table, mended with tests and tried again on the mended code: weights so "
    "large that fitting overflows float32 (five tracebacks), `validate.providers` that is a number "
    "(two tracebacks), `prune.refit` given as 0, which passed for `false`, a value of "
    "`generation_config.json` that transformers logged before we refused it, an error that ONNX "
    "Runtime logged beside raising it, and `sizes` of configs with 256 and 258 layers, which built "
    "ten graphs of all layers in 8 to 10 s of processor time and now takes less than one. The "
    "campaign ran on the code before these mends."
)
NOT_TRIED = (
    "Two real machines, power cuts, disks of other file systems, and leaks within ONNX Runtime: "
    "the sanitizers look for them in the fuzzer of `tests/native`, which runs without ONNX Runtime."
)
SAME_BYTES = "every run ends with the bytes of an undisturbed one"
FULL = "stopped with exit code 4 and a sentence, all resumed to the same bytes"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the files of figures."""
    parser.add_argument("files", nargs="*", type=Path, help="files that campaigns have written")


def make(arguments: argparse.Namespace) -> None:
    """Adds up the figures and writes the page."""
    parts = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.files]
    data = read_data(NAME) if data_file(NAME).exists() else {}
    for campaign in sorted({name for part in parts for name in part}):
        own = [part[campaign] for part in parts if campaign in part]
        data[campaign] = sum_of(own) if len(own) > 1 else own[0]
    data = rounded(data)
    write_page(NAME, data, markdown(data))


def sum_of(figures: list[Any]) -> Any:
    """Adds up the figures of one campaign: counts are added, names that begin with `most` or
    `longest` have the largest value, and everything else is that of the last.

    >>> sum_of([{"cases": 2, "most_s": 5.0, "seed": 1}, {"cases": 3, "most_s": 1.0, "seed": 2}])
    {'cases': 5, 'most_s': 5.0, 'seed': 2}
    """
    result: dict[str, Any] = {}
    for each in figures:
        for key, value in each.items():
            if key in ("machine", "versions") or key not in result:
                result[key] = value
            elif isinstance(value, dict):
                result[key] = sum_of([result[key], value])
            elif key.startswith(("most", "longest")):
                result[key] = max(result[key], value)
            elif isinstance(value, int) and key not in KEPT:
                result[key] += value
            else:
                result[key] = value
    return result


WHATS = {kind.NAME: kind.WHAT for kind in KINDS}
KEPT = ("seed", "layers", "repeats", "processes", "kinds")
"""Numbers that are no counts."""


def markdown(data: dict[str, Any]) -> str:
    """The page from its figures."""
    facts = data["fuzz"]["machine"] | data["fuzz"]["versions"]
    facts["memory"] = size(facts["memory_bytes"])
    parts = ["# What was tried to break it", INTRODUCTION.format(**facts)]
    parts += ["## Hostile inputs", FUZZ, table(_fuzz_table(data["fuzz"])), OPEN]
    parts += ["## Events", table(_event_table(data))]
    if "tampering" in data:
        parts += ["## Tampering", _tampering(data["tampering"])]
    if "sanitizers" in data:
        parts += ["## The library under sanitizers", _sanitizers(data["sanitizers"])]
    if "costs" in data:
        parts += ["## Cost of hashing and syncing", *_costs(data["costs"])]
    parts += ["## Not tried", NOT_TRIED]
    return "\n\n".join(parts) + "\n"


def _fuzz_table(fuzz: dict[str, Any]) -> Table:
    head = ["input", "changes", "cases", "refused", "done", "bad", "most CPU s", "most memory"]
    rows = []
    total: Counter[str] = Counter()
    for name, kind in fuzz["kinds"].items():
        counts = Counter(kind["verdicts"])
        total += counts
        costs = [f"{kind['most_cpu_s']:.1f}", size(kind["most_added_bytes"])]
        rows.append([name, WHATS[name], *_counts(counts), *costs])
    rows.append(["all", "", *_counts(total), "", ""])
    return Table(head, rows)


def _counts(counts: Counter[str]) -> list[str]:
    bad = sum(counts[word] for word in BAD)
    return [f"{number:,}" for number in (counts.total(), counts[REFUSED], counts[DONE], bad)]


def _event_table(data: dict[str, Any]) -> Table:
    rows = []
    if "kills" in data:
        kills = data["kills"]
        what = (
            f"SIGKILL at random moments of both demo recipes ({', '.join(kills['changes'])}), "
            f"{kills['new_interpreters']} in new interpreters, then resumed"
        )
        tried = f"{kills['kills']} in {kills['runs']} runs"
        rows.append([what, tried, SAME_BYTES, kills["bad"]])
    if "families" in data:
        found = data["families"]
        what = (
            f"whole recipes of tiny random models of {len(found['families'])} families, which pass "
            "their gates against torch; SIGKILL within drawn stages, then resumed"
        )
        tried = f"{found['kills']} in {len(found['families'])} families"
        rows.append([what, tried, SAME_BYTES, found["bad"]])
    for name, kind in data.get("disks", {}).get("kinds", {}).items():
        rows.append([name, str(kind["tried"]), f"{kind['stopped']} {FULL}", kind["bad"]])
    workers = data.get("workers", {})
    for name, kind in workers.get("kinds", {}).items():
        what = f"{workers['processes']} processes on {name}, one killed, one stopped for a while"
        came = (
            f"{kind['stopped']} stopped; the others ended in a sentence within "
            f"{kind['longest_s']:.1f} s, and the next start gave the bytes of one process"
        )
        rows.append([what, str(kind["tried"]), came, kind["bad"]])
    head = ["event", "tried", "outcome", "bad"]
    return Table(head, [[*row[:3], str(row[3])] for row in rows])


def _tampering(found: dict[str, Any]) -> str:
    return (
        f"{found['tried']} changes of a finished run ({found['kinds']} kinds, on every stage): "
        f"`verify` notices {found['noticed']}. The other {len(found['seen_only_by_a_manifest'])} "
        "change a file, its entry in the mark of the stage, and the record of the mark in "
        "`run.json` alike, one for each stage; only `verify --against` a manifest that is kept "
        f"elsewhere sees these, as it sees all others. Missed by both: {len(found['missed'])}."
    )


def _sanitizers(found: dict[str, Any]) -> str:
    ran, refused = found["hostile"]["run"], found["hostile"]["refused"]
    return (
        "The library, compiled with AddressSanitizer and UBSan and loaded in ONNX Runtime, with "
        f"each kernel of the processor ({', '.join(found['kernels'])}): {found['table']:,} nodes "
        "of the operator's table gave the values of the reference, and of "
        f"{ran + refused:,} hostile nodes (attributes, weights, inputs and packed bytes) "
        f"{ran:,} ran and {refused:,} were refused. Faults found: {found['bad']}. Before, an array "
        "shorter than its shape shows that the sanitizers see a fault."
    )


def _costs(costs: dict[str, Any]) -> list[str]:
    walls, cpus = costs["median_wall_s"], costs["median_cpu_s"]
    rows = [
        [
            mode,
            f"{walls[mode]:.1f}",
            f"{cpus[mode]:.1f}",
            f"{cpus[mode] / cpus['neither'] - 1:+.1%}",
        ]
        for mode in walls
    ]
    text = (
        f"Prune, quantize and export of {costs['layers']} layers with the shapes of "
        f"Qwen1.5-MoE-A2.7B, in turn, medians of {costs['repeats']}, imports included. Wall times "
        "are those of a machine whose disk and cores others use; they say little."
    )
    return [text, table(Table(["mode", "wall s", "CPU s", "CPU, against neither"], rows))]
