"""Runs of both demo recipes killed by SIGKILL at random moments, and resumed.

A run is started, killed, and started again until it ends by itself. Then its files are compared
with those of a run that nobody disturbed. One start in four is a new interpreter, so that kills
also fall into imports; the others are forked from a process that has imported everything.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from moe_export.cli import main
from tools.trust.fuzz import ROOT, load_everything, quick_folder
from tools.trust.run_files import unequal
from tools.trust.sandbox import Outcome, Started
from tools.trust.verdict import DONE, verdict

RECIPES = ("demo_50pct", "demo_50pct_int4")
IMPORTS_S = 4.0
"""Processor time of the imports of a new interpreter, about."""

MOST_IN_A_RUN = 10
LONGEST_S = 3600


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    parser.add_argument(
        "--mean-s", type=float, default=1.5, help="mean processor time to a kill (default: 1.5)"
    )
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no run later (default: no limit)"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="changes of the recipes, as of moe-export run"
    )


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Kills and resumes runs of both recipes in turn; returns what came of it."""
    load_everything()
    random = Random(arguments.seed)
    chains: list[dict[str, Any]] = []
    end = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="kills-", dir=quick_folder()) as folder:
        home = Path(folder)
        for recipe in RECIPES:
            done = start_run(_words(recipe, arguments.set, home / recipe), is_new=False)
            outcome = done.wait(LONGEST_S)
            if outcome.code != 0:
                raise RuntimeError(outcome.err)
        while (left := arguments.kills - _count(chains)) > 0 and time.monotonic() < end:
            recipe = RECIPES[len(chains) % len(RECIPES)]
            words = _words(recipe, arguments.set, home / "run")
            chain = killed_and_resumed(
                words, home / "run", random, arguments.mean_s, min(left, MOST_IN_A_RUN)
            )
            chain |= {"recipe": recipe, "unequal": unequal(home / recipe, home / "run")}
            print(chain, flush=True)
            chains.append(chain)
            shutil.rmtree(home / "run")
    return summary(chains) | {"changes": arguments.set, "seed": arguments.seed}


def summary(chains: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all runs."""
    kills = [stage for chain in chains for stage in chain["stages"]]
    bad = [chain for chain in chains if chain["unequal"] or chain["ends"] != [DONE]]
    return {
        "runs": len(chains),
        "kills": len(kills),
        "new_interpreters": sum(chain["new"] for chain in chains),
        "kills_by_stage": {stage: kills.count(stage) for stage in sorted(set(kills))},
        "bad": len(bad),
    }


def killed_and_resumed(
    words: list[str], run: Path, random: Random, mean_s: float, most: int
) -> dict[str, Any]:
    """Starts a run again until it ends by itself, and kills it before, at most so many times.

    Returns:
        Stages that the kills fell into, the number of killed new interpreters, and the verdicts on
        starts that ended by themselves.
    """
    stages: list[str] = []
    new = 0
    while True:
        is_new = random.random() < 0.25
        moment_s = random.expovariate(1 / mean_s)
        if is_new:
            moment_s = random.uniform(0, IMPORTS_S + mean_s)
        if len(stages) >= most:
            moment_s = math.inf
        started = start_run(words, is_new)
        if is_alive_at(started.process, moment_s):
            os.kill(started.process, signal.SIGKILL)
            if started.wait().code == -signal.SIGKILL:
                stages.append(stage_of(run))
                new += is_new
                continue
        outcome: Outcome = started.wait(LONGEST_S)
        return {"stages": stages, "new": new, "ends": [verdict(outcome)], "said": outcome.err}


def _count(chains: list[dict[str, Any]]) -> int:
    return sum(len(chain["stages"]) for chain in chains)


def _words(recipe: str, changes: list[str], run: Path) -> list[str]:
    words = ["run", f"recipes/{recipe}.yaml", "--threads", "1", "--run", str(run)]
    for change in changes:
        words += ["--set", change]
    return words


def start_run(words: list[str], is_new: bool) -> Started:
    """Starts a run in a new interpreter, or in a process that has imported everything."""

    def call() -> int:
        os.chdir(ROOT)
        if is_new:
            os.execv(sys.executable, [sys.executable, "-m", "moe_export", *words])
        return main(words)

    return Started(call, is_limited=False)


def is_alive_at(process: int, moment_s: float) -> bool:
    """Waits until a process has used so much processor time; False if it ends before."""
    while not has_ended(process):
        if cpu_s(process) >= moment_s:
            return True
        time.sleep(0.005)
    return False


def has_ended(process: int) -> bool:
    state = (Path("/proc") / str(process) / "stat").read_text().rsplit(")", 1)[1].split()[0]
    return state == "Z"


def cpu_s(number: int) -> float:
    """Processor time of a process and those that it has started, so that waiting counts too."""
    proc = Path("/proc") / str(number)
    try:
        children = (proc / "task" / str(number) / "children").read_text().split()
        fields = (proc / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:  # it has just ended
        return 0.0
    own_s = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return own_s + sum(cpu_s(int(child)) for child in children)


def stage_of(run: Path) -> str:
    """Stage that a run was in when it was killed."""
    partial = sorted(path.name.removesuffix(".partial") for path in run.glob("*.partial"))
    return partial[0] if partial else "before or between stages"
