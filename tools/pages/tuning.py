"""Methods of tuning against their controls, on a demo model whose experts per token matter.

    python -m tools.pages tuning RUN [--arms NAME ...] [--seeds N ...] [--pruned] [--towards]
                                     [--speed] [--large NAME ...] [--new]

Rows that the page has are not measured again unless `--new` forgets them all. RUN keeps a run
directory for each way and seed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

import moe_export
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.tuning import Tuning
from moe_export.bench.models import Model
from moe_export.bench.turns import Settings, bench
from moe_export.checkpoint import read_config
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.errors import GateError
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.recipe import Recipe
from moe_export.reporting.sizes import sizes_of
from moe_export.runner.source_model import locate
from moe_export.runner.steps import Step
from moe_export.runner.watcher import Watcher
from moe_export.stages.export import export_model
from moe_export.system.machine import machine, versions
from moe_export.system.progress import Progress, silent
from moe_export.torch_model import load_torch_model
from tools.pages.page import data_file, read_data, rounded, write_page
from tools.pages.tuning_arms import (
    ARMS,
    BY_NAME,
    HALF_TUNED,
    MORE_TUNED,
    TOWARDS,
    Arm,
    recipe_of,
)
from tools.pages.tuning_large import LARGE_BY_NAME, measure_large
from tools.pages.tuning_skills import write_skills
from tools.pages.tuning_words import markdown

__all__ = ["add_options", "make", "markdown"]

KEEPS = (0.5, 0.25)
SPEED = Settings(threads=(1,), batches=(1,), prompt_tokens=(64,), new_tokens=128, repeats=15)

TIMED = ("source", HALF_TUNED, "compressed, input", "compressed, tied", MORE_TUNED)
"""Ways whose exports differ in speed and run in the native library."""

Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("run", type=Path, help="folder of the runs")
    parser.add_argument(
        "--arms", nargs="+", choices=BY_NAME, default=list(BY_NAME), help="ways to measure"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training")
    parser.add_argument("--steps", type=int, default=150, help="steps of each training")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of all weights")
    parser.add_argument("--pruned", action="store_true", help="prune each model as well")
    parser.add_argument(
        "--towards", action="store_true", help="bring half of the experts towards the source"
    )
    parser.add_argument(
        "--speed", action="store_true", help="time exports of the models of the first seed"
    )
    parser.add_argument(
        "--large",
        nargs="+",
        choices=LARGE_BY_NAME,
        default=[],
        help="time exports of the shapes of released models (8 GB of disk each)",
    )
    parser.add_argument("--new", action="store_true", help="forget what the page has")


def make(arguments: argparse.Namespace) -> None:
    """Measures what is asked for, and writes the page after each row, as rows take long."""
    settings = {"steps": arguments.steps, "rate": arguments.rate}
    if arguments.new or not data_file("tuning").is_file():
        _write({"settings": settings, "rows": [], "speed": None})
    if (known := read_data("tuning")["settings"]) != settings:
        raise SystemExit(f"tuning: the page has {known}, asked for {settings}; give --new")
    write_skills(arguments.run / "skills")
    for arm, seed, keep in _wanted(arguments):
        row = measure(arguments, arm, seed, keep)
        # Read again, because another process may have added rows meanwhile.
        content = read_data("tuning")
        _write(content | {"rows": [*content["rows"], row]})
    for arm, seed in _wanted_towards(arguments):
        row = measure(arguments, arm, seed, 1.0)
        content = read_data("tuning")
        _write(content | {"towards": [*content.get("towards", []), row]})
    if arguments.speed:
        found = speed(arguments)
        _write(read_data("tuning") | {"speed": found})
    for large in (LARGE_BY_NAME[name] for name in arguments.large):
        found = measure_large(large, arguments.run / "large")
        others = [
            each for each in read_data("tuning").get("large", []) if each["name"] != large.name
        ]
        _write(read_data("tuning") | {"large": [*others, found]})


def _wanted(arguments: argparse.Namespace) -> Iterator[tuple[Arm, int | None, float]]:
    """Rows that the page lacks: all of the first seed before any of the second."""
    for seed in arguments.seeds:
        for keep in (1.0, *KEEPS) if arguments.pruned else (1.0,):
            for arm in (BY_NAME[name] for name in arguments.arms):
                # What is not tuned does not depend on the seed of training.
                place = (arm.name, seed if arm.tunes else None, keep)
                if place not in map(_place, read_data("tuning")["rows"]):
                    yield arm, place[1], keep


def _wanted_towards(arguments: argparse.Namespace) -> Iterator[tuple[Arm, int]]:
    """Rows of the table on distilling that the page lacks."""
    for seed in arguments.seeds if arguments.towards else ():
        for arm in TOWARDS:
            known = {(row["arm"], row["seed"]) for row in read_data("tuning").get("towards", [])}
            if (arm.name, seed) not in known:
                yield arm, seed


def _place(row: Row) -> tuple[str, int | None, float]:
    return row["arm"], row["seed"], row["keep"]


def _write(content: dict[str, Any]) -> None:
    names = [arm.name for arm in ARMS]
    content["rows"].sort(key=lambda row: (-row["keep"], names.index(row["arm"]), row["seed"] or 0))
    about = {"machine": machine()["cpu"], "versions": versions()}
    content = rounded(content | about)
    write_page("tuning", content, markdown(content))


def measure(arguments: argparse.Namespace, arm: Arm, seed: int | None, keep: float) -> Row:
    """Row of one way, seed and share kept."""
    recipe = _recipe(arguments, arm, seed, keep)
    folder = _folder(arguments, arm, seed)
    row: Row = {"arm": arm.name, "seed": seed, "keep": keep}
    clock = _StepClock()
    last = "prune" if keep < 1 else "tune" if arm.tunes else "calibrate"
    try:
        moe_export.run(recipe, folder, until=last, threads=1, progress=clock)
    except GateError as error:
        return row | {"stopped": str(error)}
    source = locate(recipe.model)
    tuned = folder / "tune" if arm.tunes else source
    top_k = None if arm.tunes or recipe.plan is None else recipe.plan.top_k
    if keep < 1:
        model = load_torch_model(folder / "prune", torch.float32)
        plan = Plan.load(folder / "plan")
        row["active_bytes"] = plan.export_bytes["float16"].after.active_bytes_per_token
    else:
        model = load_torch_model(tuned, torch.float32, top_k)
        row["active_bytes"] = _active_bytes(tuned, top_k)
    row["tasks"] = _scores(model, scored_tasks_of(recipe, source))
    if arm.tunes and keep == 1:
        row |= _account(Tuning.load(folder / "tune"), clock)
    return row


def _recipe(arguments: argparse.Namespace, arm: Arm, seed: int | None, keep: float) -> Recipe:
    return recipe_of(
        arm,
        arguments.run.resolve() / "skills",
        seed=seed or 0,
        steps=arguments.steps,
        rate=arguments.rate,
        keep=keep,
    )


def _folder(arguments: argparse.Namespace, arm: Arm, seed: int | None) -> Path:
    number = (*ARMS, *TOWARDS).index(arm)
    folder: Path = arguments.run / f"{number:02}-{seed or 0}"
    return folder


def scored_tasks_of(recipe: Recipe, model: Path) -> dict[str, ScoredTask]:
    """Held-out documents of every skill, by its short name."""
    return {
        Path(name).stem.removesuffix("_test"): ScoredTask(
            has_answers(task), draw(task, model, task.items, 512, TEST_SEED, "test").sequences
        )
        for name, task in task_names(recipe.validate_.tasks).items()
    }


def _scores(model: Any, tasks: dict[str, ScoredTask]) -> dict[str, Any]:
    return {
        name: {"exact_match": score.exact_match, "loss_nats": score.loss_nats}
        for name, score in score_tasks(model, tasks).items()
    }


def _active_bytes(checkpoint: Path, top_k: int | None) -> int:
    top_ks = () if top_k is None else (top_k,)
    sizes = sizes_of(read_config(checkpoint), (1.0,), ("float16",), top_ks)
    return sizes.models[0].active_bytes


def _account(found: Tuning, clock: _StepClock) -> Row:
    return {
        "tokens": found.tokens,
        "trained_parameters": found.trained_parameters,
        "held_out_nats": [found.before, found.after],
        "cpu_s_per_step": clock.median_s,
    }


class _StepClock(Watcher):
    """CPU time of this process between the steps of a training."""

    def __init__(self) -> None:
        self._times_s: list[float] = []

    def progress_of(self, step: Step) -> Progress:
        """Note the time of every report of the tune stage."""
        return self._note if step.stage == "tune" else silent

    def _note(self, done: int, total: int, what: str) -> None:  # noqa: ARG002 - a Progress
        if "step " in what:
            self._times_s.append(time.process_time())

    @property
    def median_s(self) -> float | None:
        """Median CPU time of a step; None if fewer than two began."""
        return median(b - a for a, b in pairwise(self._times_s)) if self._times_s[1:] else None


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Decoding speed of every way's first model, exported as it is; the models take turns."""
    models = []
    for arm in (BY_NAME[name] for name in TIMED if name in arguments.arms):
        seed = arguments.seeds[0] if arm.tunes else None
        recipe, folder = _recipe(arguments, arm, seed, 1.0), _folder(arguments, arm, seed)
        moe_export.run(recipe, folder, until="tune" if arm.tunes else "calibrate", threads=1)
        out = arguments.run / "exported" / folder.name
        if not out.is_dir():
            tuned = folder / "tune" if arm.tunes else locate(recipe.model)
            export_model(tuned, out, "float32", library=True)
        models.append(Model(arm.name, out))
    result = bench(models, SPEED)
    return {
        "kernel": result["kernel"],
        "decode_of_first": {row["variant"]: row["decode_of_first"] for row in result["results"]},
        "decode_tokens_per_s": {
            row["variant"]: row["decode_tokens_per_s"]["median"] for row in result["results"]
        },
    }
