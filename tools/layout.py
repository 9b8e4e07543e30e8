"""The layout of docs/guide/large-models.md in small: several processes on a common disk.

    python -m tools.layout HOME [--processes 4]

For a model with latent attention and one with delta nets, random and of 54 and 77 M parameters,
runs a recipe up to its export in one process and in several, compares all files, and prints the
memory that each process held beside the prediction. HOME keeps the checkpoints and runs, 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from moe_export.artifacts.stage_mark import StageMark
from moe_export.recipe.load import load_recipe
from moe_export.runner.estimate import estimate
from moe_export.system.machine import machine, versions
from moe_export.testing.families import DEEPSEEK_V3, QWEN3_5_MOE_TEXT, FamilyRow
from moe_export.testing.tiny import tiny_checkpoint
from tools.trust.run_files import unequal
from tools.trust.workers import free_port

ROOT = Path(__file__).parents[1]
ROWS = (DEEPSEEK_V3, QWEN3_5_MOE_TEXT)
SIZES = {"hidden_size": 512, "moe_intermediate_size": 512, "num_experts_per_tok": 4}
EXPERTS = 32
RECIPE: dict[str, Any] = {
    "calibrate": {
        "sources": [{"demo": "sums"}, {"demo": "strings"}],
        "sequences": 32,
        "sequence_length": 128,
    },
    "importance": {"scores": ["fisher_margin"], "batch_tokens": 512, "dtype": "bfloat16"},
    "plan": {"keep": 0.5, "score": "fisher_margin"},
    "prune": {"refit": False},
    "quantize": {"experts": "int4", "dense": "int8"},
    "export": {"dtype": "float16", "pruned": False, "baseline": False},
}


def main(words: list[str] | None = None) -> int:
    """Prints what was found; returns 1 if a file differs or a process held more than predicted."""
    parser = argparse.ArgumentParser(prog="python -m tools.layout", description=__doc__)
    parser.add_argument("home", type=Path, help="folder of checkpoints and runs; is created")
    parser.add_argument("--processes", type=int, default=4, help="number (default: 4)")
    arguments = parser.parse_args(words)
    home = arguments.home.absolute()
    found = {row.model_type: tried(row, home, arguments.processes) for row in ROWS}
    print(json.dumps(found | {"machine": machine(), "versions": versions()}, indent=1))
    is_bad = any(each["unequal"] or each["held"] > each["predicted"] for each in found.values())
    return 1 if is_bad else 0


def tried(row: FamilyRow, home: Path, processes: int) -> dict[str, Any]:
    """Runs one model in one process and in several.

    Returns:
        Names of files that differ, and bytes of memory: the prediction for the importance stage,
        what a process alone held in it, and the most that one of several held.
    """
    place = home / row.model_type
    model = place / "model"
    shutil.rmtree(place, ignore_errors=True)
    experts = "n_routed_experts" if "n_routed_experts" in row.config else "num_experts"
    tiny_checkpoint(model, base=row.config, dtype="bfloat16", **SIZES, **{experts: EXPERTS})
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"source": str(model)}} | RECIPE))
    _run(recipe, place / "one", 1)
    held = _run(recipe, place / "several", processes)
    predicted = {each.stage: each.peak_bytes for each in estimate(load_recipe(recipe), model)}
    marks = [StageMark.load(place / run / "importance") for run in ("one", "several")]
    alone, first = (mark.measured.peak_resident_bytes for mark in marks)
    return {
        "processes": processes,
        "unequal": unequal(place / "one", place / "several"),
        "predicted": predicted["importance"],
        "alone": alone,
        # The first process carries out the other stages too, so its mark counts.
        "held": max(first, *held[1:]),
    }


def _run(recipe: Path, run: Path, processes: int) -> list[int]:
    """Starts processes in the way of `torchrun`; returns the most bytes that each held."""
    shared = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        shared["WORLD_SIZE"] = str(processes)
    command = [sys.executable, "-m", "moe_export", "run", str(recipe), "--run", str(run)]
    command += ["--until", "export"]
    started = []
    for rank in range(processes):
        own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        started.append(subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL))
    return [_held_bytes(each) for each in started]


def _held_bytes(process: subprocess.Popen[bytes]) -> int:
    """Waits for the end of a process; returns its most resident memory."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"tools.layout: a process ended with exit code {process.returncode}, see above")
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
