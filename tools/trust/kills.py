"""Runs of both demo recipes killed by SIGKILL at random moments, and resumed.

A run is started, killed, and started again until it ends by itself. Then its files are compared
with those of a run that nobody disturbed. Every start is a process of its own, so kills also fall
into imports.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from tools.trust.run_files import unequal

ROOT = Path(__file__).parents[2]
RECIPES = ("demo_50pct", "demo_50pct_int4")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument(
        "--mean-s", type=float, default=4, help="mean processor time before a kill (default: 4)"
    )
    parser.add_argument(
        "--references", type=Path, help="folder that keeps the undisturbed runs for further calls"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="changes of the recipes, as of moe-export run"
    )


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills and resumes runs of both recipes in turn; returns what came of it."""
    random = Random(arguments.seed)
    chains: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        home = Path(folder)
        references = arguments.references or home
        commands = {recipe: command_of(recipe, arguments.set) for recipe in RECIPES}
        for recipe, command in commands.items():
            done = [*command, str(references.absolute() / recipe)]
            subprocess.run(done, check=True, env=environment(), cwd=ROOT)
        while sum(len(chain["moments_s"]) for chain in chains) < arguments.kills:
            recipe = RECIPES[len(chains) % len(RECIPES)]
            left = arguments.kills - sum(len(chain["moments_s"]) for chain in chains)
            chain = killed_and_resumed(
                [*commands[recipe], str(home / "run")], random, arguments.mean_s, left
            )
            chain |= {"recipe": recipe, "unequal": unequal(references / recipe, home / "run")}
            print(chain, flush=True)
            chains.append(chain)
            shutil.rmtree(home / "run")
    return summary(chains) | {"changes": arguments.set, "seed": arguments.seed}


def summary(chains: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all runs."""
    kills = [stage for chain in chains for stage in chain["stages"]]
    bad = [chain for chain in chains if chain["unequal"] or chain["code"] or chain["said"]]
    return {
        "runs": len(chains),
        "kills": len(kills),
        "kills_by_stage": {stage: kills.count(stage) for stage in sorted(set(kills))},
        "bad": len(bad),
    }


def command_of(recipe: str, changes: list[str]) -> list[str]:
    """Words that run a recipe, but for its folder, which comes last."""
    words = [sys.executable, "-m", "moe_export", "run", f"recipes/{recipe}.yaml", "--threads", "1"]
    for change in changes:
        words += ["--set", change]
    return [*words, "--run"]


def environment() -> dict[str, str]:
    """Environment of runs: one thread."""
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def killed_and_resumed(
    command: list[str], random: Random, mean_s: float, most: int
) -> dict[str, Any]:
    """Starts a run again until it ends by itself, and kills it before, at most so many times.

    Returns:
        Moments of the kills in seconds of processor time from the start, the stages they fell
        into, the last exit code, and what a start wrote to stderr beside warnings.
    """
    run = Path(command[-1])
    moments_s: list[float] = []
    stages: list[str] = []
    while True:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        moment_s = random.expovariate(1 / mean_s) if len(moments_s) < most else math.inf
        if _is_alive_at(process, moment_s):
            process.send_signal(signal.SIGKILL)
            process.communicate()
            stages.append(_stage(run))
            moments_s.append(round(moment_s, 2))
            continue
        _, said = process.communicate()
        said = "\n".join(line for line in said.splitlines() if not line.startswith("WARNING"))
        return {
            "moments_s": moments_s,
            "stages": stages,
            "code": process.returncode,
            "said": said[-2000:],
        }


def _is_alive_at(process: subprocess.Popen[str], moment_s: float) -> bool:
    """Waits until a process has used so much processor time; False if it ends before."""
    while process.poll() is None:
        if _cpu_s(process.pid) >= moment_s:
            return True
        time.sleep(0.01)
    return False


def _cpu_s(number: int) -> float:
    """Processor time of a process and those that it has started, so that waiting counts too."""
    proc = Path("/proc") / str(number)
    try:
        children = (proc / "task" / str(number) / "children").read_text().split()
        fields = (proc / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has just ended
        return 0.0
    own_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(_cpu_s(int(child)) for child in children)


def _stage(run: Path) -> str:
    """Stage that a run is in; `before` if it has not begun one since its start."""
    partial = sorted(path.name.removesuffix(".partial") for path in run.glob("*.partial"))
    return partial[0] if partial else "before or between stages"
