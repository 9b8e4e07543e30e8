"""Experts in three bits against four, at equal bytes.

Each format keeps as many dimensions as fit the bytes of a budget in panels. Models are scored in
torch with dequantized weights, so that formats can be compared that no kernel has.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.families import open_checkpoint
from moe_export.fitting.gptq_layers import quantize_by_layer
from moe_export.formats import GRIDS, QuantizedMatrix
from moe_export.formats.rounding import quantize
from moe_export.op.panels import BLOCK
from moe_export.quantization import EXPERT_ROLES, Quantization
from moe_export.recipe import QuantizeSettings, Recipe
from moe_export.recipe.load import load_recipe
from moe_export.torch_model import load_torch_model
from tools.pages import trial_formats
from tools.pages.demo_runs import carried_out
from tools.pages.page import rounded, write_page

FORMATS = ("int4", "uint4", *trial_formats.TRIALS)
METHODS = ("mse", "gptq")
FLOAT = "float"

BUDGETS = {
    "int4 at 100%": ("int4", 1.0),
    "int3 at 100%": ("int3", 1.0),
    "int4 at 50%": ("int4", 0.5),
    "int3 at 50%": ("int3", 0.5),
    "int4 at 25%": ("int4", 0.25),
}
"""Name of a budget; the format and the share kept that give its bytes."""

FITS = {"pruned": "prune.refit=false", "refitted": "prune.distill_blocks=false"}
"""Way of fitting after pruning; the key of a recipe that asks for it."""


@dataclass(frozen=True)
class Subject:
    """A model with its documents.

    Attributes:
        title: Name on the page.
        recipe: Recipe that calibrates and prunes, and names the tasks.
        items: Documents of each task.
        scores_answers: True to score tasks with answers beside text.
    """

    title: str
    recipe: Path
    items: int
    scores_answers: bool


SUBJECTS = {
    "demo": Subject("The demo model", Path("recipes/demo_50pct_int4.yaml"), 100, True),
    "smollm2": Subject("SmolLM2-135M as a Mixtral", Path("recipes/smollm2_50pct.yaml"), 4, False),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs/three_bits"),
        help="folder of the runs; finished rows in it are not measured again",
    )
    for name, choices in (
        ("models", SUBJECTS),
        ("fits", FITS),
        ("budgets", BUDGETS),
        ("formats", FORMATS),
        ("methods", METHODS),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=list(choices))


def make(arguments: argparse.Namespace) -> None:
    """Measures the rows that are asked for, and writes the page of all that are finished."""
    for name in arguments.models:
        measuring = Measuring(SUBJECTS[name], arguments.run / name)
        with trial_formats.known():
            for place in measuring.places(arguments):
                measuring.measure(place)
    finished = {
        name: _finished(arguments.run / name)
        for name in SUBJECTS
        if (arguments.run / name / ELEMENTS).exists()
    }
    write_page("three_bits", rounded(finished), markdown(rounded(finished)))


def _finished(run: Path) -> dict[str, Any]:
    """Rows of a model, and the number of its experts' weights."""
    elements = json.loads((run / ELEMENTS).read_text(encoding="utf-8"))
    return {"elements": elements, "rows": finished_rows(run)}


def finished_rows(run: Path) -> list[dict[str, Any]]:
    """Rows that are in files of a run directory."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(run.glob("row-*.json"))]


ELEMENTS = "elements.json"
"""File in a run directory with the numbers of weights of routed and of shared experts."""


@dataclass(frozen=True)
class Place:
    """A pruned model and the rounding of its experts.

    Attributes:
        fit: Way of fitting after pruning.
        keep: Share of the routed experts' dimensions that is kept.
        format: Format of the experts.
        method: Method of rounding; None without rounding.
    """

    fit: str
    keep: float
    format: str
    method: str | None

    @property
    def file(self) -> str:
        """Name of the file of its scores."""
        return f"row-{self.fit}-{self.keep}-{self.format}-{self.method}.json"


def kept(elements: Mapping[str, int], budget: str, name: str) -> float:
    """Share of the routed dimensions that a format keeps within a budget.

    Args:
        elements: Numbers of weights of the routed and of the shared experts.
        budget: Name of the budget.
        name: Format.

    >>> kept({"routed": 300, "shared": 0}, "int4 at 50%", "int3")
    0.6429
    """
    of_budget, keep = BUDGETS[budget]
    ratio = trial_formats.panel_bits(of_budget) / trial_formats.panel_bits(name)
    size = (keep * elements["routed"] + elements["shared"]) * ratio
    return round((size - elements["shared"]) / elements["routed"], 4)


class Measuring:
    """A calibrated model, which is pruned, quantized and scored.

    Args:
        subject: The model and its documents.
        directory: Run directory.
    """

    def __init__(self, subject: Subject, directory: Path) -> None:
        self.subject, self.directory = subject, directory
        recipe = load_recipe(subject.recipe)
        model = carried_out(recipe, directory, "importance")
        checkpoint, self.spec = open_checkpoint(model)
        self.elements = {"routed": 0, "shared": 0}
        for name, tensor in self.spec.tensors.items():
            if tensor.role in EXPERT_ROLES:
                part = "shared" if tensor.expert is None else "routed"
                self.elements[part] += math.prod(checkpoint.tensors[name].shape)
        text = json.dumps(self.elements)
        (directory / ELEMENTS).write_text(text, encoding="utf-8")
        self.tasks = _tasks(recipe, model, subject)
        self.dense = load_torch_model(model, torch.float32)

    def places(self, arguments: argparse.Namespace) -> Iterator[Place]:
        """Rows that are asked for, those of one pruned model together."""
        formats = [
            (kept(self.elements, budget, name), name)
            for budget in arguments.budgets
            for name in arguments.formats
        ]
        for fit, (keep, name) in product(arguments.fits, sorted(set(formats), reverse=True)):
            # Nothing is refitted where nothing is removed.
            if keep > 1 or (keep == 1 and fit != "pruned"):
                continue
            if keep < 1:
                yield Place(fit, keep, FLOAT, None)
            yield from (Place(fit, keep, name, method) for method in arguments.methods)

    def measure(self, place: Place) -> None:
        """Writes the scores of a row, unless they are there."""
        file = self.directory / place.file
        if file.exists():
            return
        recipe = load_recipe(self.subject.recipe, (f"plan.keep={place.keep}", FITS[place.fit]))
        carried_out(recipe, self.directory, "prune")
        model = load_torch_model(self.directory / "prune", torch.float32)
        if place.method is not None:
            self._round(model, place.format, place.method)
        row = vars(place) | self._scores(model)
        file.write_text(json.dumps(row), encoding="utf-8")

    def _round(self, model: Any, name: str, method: str) -> None:
        """Replaces the weights of all experts by those of a format."""
        matrices = self._by_gptq(name) if method == "gptq" else self._by_search(model, name)
        for tensor, matrix in matrices:
            weight_NK = torch.from_numpy(np.ascontiguousarray(matrix.dequantized().T))
            with torch.no_grad():
                model.get_parameter(tensor).copy_(weight_NK)

    def _by_gptq(self, name: str) -> Iterator[tuple[str, QuantizedMatrix]]:
        settings = QuantizeSettings(method="gptq")
        calibration = Calibration.load(self.directory / "calibrate")
        for _, results in quantize_by_layer(
            self.directory / "prune",
            Quantization(name, group_size=BLOCK),
            calibration.sample(settings.calibration_tokens),
            settings.damping,
            rounded_in_python,
        ):
            yield from ((tensor, result.matrix) for tensor, result in results.items())

    def _by_search(self, model: Any, name: str) -> Iterator[tuple[str, QuantizedMatrix]]:
        for tensor, facts in self.spec.tensors.items():
            if facts.role in EXPERT_ROLES:
                weight_NK = model.get_parameter(tensor).detach().numpy()
                yield tensor, rounded_in_python(name, weight_NK, BLOCK, search=True)

    def _scores(self, model: Any) -> dict[str, Any]:
        scores = score_tasks(model, self.tasks, self.dense)
        matches = [s.exact_match for s in scores.values() if s.exact_match is not None]
        nats = [s.kl_nats for name, s in scores.items() if not self.tasks[name].has_answers]
        return {
            "text_kl_nats": fmean(kl for kl in nats if kl is not None),
            "right": fmean(matches) if matches else None,
        }


def rounded_in_python(
    format_name: str, weight_NK: NDArray[Any], group_size: int, *, search: bool = False
) -> QuantizedMatrix:
    """A weight [N, K] in the nearest codes, with scales in float16, of a format without kernels."""
    return quantize(GRIDS[format_name], weight_NK.T, group_size, "float16", search=search)


def _tasks(recipe: Recipe, model: Path, subject: Subject) -> dict[str, ScoredTask]:
    length = recipe.validate_.sequence_length
    return {
        name: ScoredTask(
            has_answers(task),
            draw(task, model, subject.items, length, TEST_SEED, "test").sequences,
        )
        for name, task in task_names(recipe.validate_.tasks).items()
        if subject.scores_answers or not has_answers(task)
    }


def markdown(data: Mapping[str, Any]) -> str:
    """The page from its data."""
    lines = ["# Experts in three bits", "", INTRODUCTION, ""]
    for name, model in data.items():
        lines += [f"## {SUBJECTS[name].title}", "", *_table(model), ""]
    return "\n".join(lines)


INTRODUCTION = (
    "Made by `python -m tools.pages three_bits`; for SmolLM2 after `python -m tools.real_model "
    "--out smollm2`. No kernel has three bits; [the log](../log.md) says why. `int3` has codes "
    "from -4 to 3, `uint3` zero points, and `nf3` eight values that suit normally distributed "
    "weights. A budget is the bytes of all experts in panels, where a weight takes 4.5 bits in "
    "int4, 4.75 in uint4, 3.5 in int3 and nf3, and 3.75 in uint3. Each format keeps as many "
    "dimensions of the routed experts as fit. Scored in torch with dequantized weights; "
    "activations are not rounded. KL is from the unpruned model without quantization, per "
    "token of held-out text, in thousandths of a nat: of the demo model on 100 documents, of "
    "SmolLM2 on 12 windows of 128 tokens. Exact match, after a KL, is the mean over the demo "
    "model's four tasks of 100 documents. All is from one draw of the documents to calibrate "
    "on. Refitted models have `down` refitted (`prune.refit`). Empty cells were not measured."
)


def _table(model: Mapping[str, Any]) -> Iterator[str]:
    rows = {(row["fit"], row["keep"], row["format"], row["method"]): row for row in model["rows"]}
    yield "| bytes of | | experts | kept | not rounded | mse | gptq |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for budget, fit, name in product(BUDGETS, FITS, FORMATS):
        share = kept(model["elements"], budget, name)
        cells = [_cell(rows.get((fit, share, name, method))) for method in METHODS]
        if any(cells):
            plain = _cell(rows.get((fit, share, FLOAT, None)))
            yield f"| {budget} | {fit} | {name} | {share:.1%} | {plain} | {' | '.join(cells)} |"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    right = "" if row["right"] is None else f", {row['right']:.2%}"
    return f"{1000 * row['text_kl_nats']:.1f}{right}"
