"""Cost of hashing and syncing: prune, quantize and export with them, without one, without both.

The layers have the shapes of Qwen1.5-MoE-A2.7B. Modes take turns on one calibration, so that other
work of the machine meets all of them. Without syncing, writing to the disk goes on after the end of
a run, so before each run the tool waits until the disk has everything.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from moe_export.artifacts.stage_mark import StageMark
from moe_export.system.digested import DigestedFile
from tools.pages.full_size_run import COPIED_STAGES, prepare

ROOT = Path(__file__).parents[2]
CHANGES = ("importance.scores=[magnitude]", "plan.score=magnitude", "calibrate.sequences=1")
"""Changes of the recipe of the page full_size; they leave the three stages as they are."""

HASHING, SYNCING = "hashing", "syncing"
MODES: dict[str, tuple[str, ...]] = {
    "both": (),
    "no hashing": (HASHING,),
    "no syncing": (SYNCING,),
    "neither": (HASHING, SYNCING),
}
"""Parts that each mode leaves out."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the measurement."""
    parser.add_argument("home", type=Path, help="folder for all files; is created")
    parser.add_argument("--layers", type=int, default=2, help="number of layers (default: 2)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each mode (default: 3)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs all modes in turn; returns their seconds."""
    home = arguments.home.absolute()
    prepare(home, arguments.layers)
    base, run = home / "base", home / "run"
    _run(home, base, "plan", ())
    walls_s: dict[str, list[float]] = {mode: [] for mode in arguments.modes}
    cpus_s: dict[str, list[float]] = {mode: [] for mode in arguments.modes}
    stages_s: dict[str, list[list[float]]] = {mode: [] for mode in arguments.modes}
    for turn in range(arguments.repeats):
        for mode in Random(turn).sample(arguments.modes, len(arguments.modes)):
            shutil.copytree(base, run)
            os.sync()
            started, before_s = time.monotonic(), _children_s()
            _run(home, run, "export", MODES[mode])
            walls_s[mode].append(time.monotonic() - started)
            cpus_s[mode].append(_children_s() - before_s)
            stages_s[mode].append(
                [StageMark.load(run / stage).measured.wall_s for stage in COPIED_STAGES]
            )
            print(mode, walls_s[mode][-1], cpus_s[mode][-1], stages_s[mode][-1], flush=True)
            shutil.rmtree(run)
    return {
        "layers": arguments.layers,
        "repeats": arguments.repeats,
        "stages": list(COPIED_STAGES),
        "walls_s": walls_s,
        "cpus_s": cpus_s,
        "median_wall_s": {mode: median(values) for mode, values in walls_s.items()},
        "median_cpu_s": {mode: median(values) for mode, values in cpus_s.items()},
        "stages_s": stages_s,
        "bad": 0,
    }


def _children_s() -> float:
    """Processor time of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(home: Path, run: Path, until: str, left_out: Sequence[str]) -> None:
    """Runs the recipe in a process of its own, without some parts."""
    words = ["run", str(home / "recipe.yaml"), "--run", str(run), "--until", until]
    for change in CHANGES:
        words += ["--set", change]
    command = [sys.executable, "-m", "tools.trust.costs", ",".join(left_out), *words]
    settings = os.environ | {"MOE_EXPORT_CACHE": str(home / "cache")}
    subprocess.run(command, check=True, cwd=ROOT, env=settings)


class _Constant:
    """Digests of nothing, in the place of those that a run computes of its files."""

    def of(self, paths: Sequence[Path], *, as_written: bool) -> list[str]:
        del as_written
        return ["0" * 64 for _ in paths]


class _Undigested(DigestedFile):
    """File that is written without a digest."""

    def write(self, piece: bytes | memoryview) -> None:
        self._file.write(piece)


def _main(left_out: str, words: list[str]) -> int:
    """Runs a command with hashing or syncing replaced by nothing."""
    from moe_export.cli import main  # noqa: PLC0415 - only in the process of a run
    from moe_export.runner import run  # noqa: PLC0415
    from moe_export.system import digested, early_digests  # noqa: PLC0415

    if HASHING in left_out:
        run.Digests = _Constant
        digested.DigestedFile = _Undigested
        run.early_digests = lambda *_: contextlib.nullcontext()
        run.check_inputs = lambda *_: None
    if SYNCING in left_out:
        run.sync = early_digests.sync = lambda _: None
    return main(words)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
