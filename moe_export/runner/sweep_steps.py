"""Steps of a sweep: one calibration, then a plan, a model and its measurements per point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe_export.errors import RecipeError
from moe_export.recipe import AUTO, QuantizeSettings, Recipe
from moe_export.recipe.checks import check_auto
from moe_export.runner.steps import Step, between, steps_of

POINTS = "points"
LAST = "validate"


@dataclass(frozen=True)
class Point:
    """One model of a sweep.

    Attributes:
        name: name of the point's folder.
        keep: share of expert dimensions to keep, 0 to 1; None if a budget decides.
        target_bytes: budget for the exported weights in bytes; None if `keep` decides.
        experts: format of the experts, or `auto`.
        top_k: experts per token; None for those of the plan section.
    """

    name: str
    keep: float | None
    target_bytes: int | None
    experts: str
    top_k: int | None = None


def points_of(recipe: Recipe, baseline_bytes: int) -> list[Point]:
    """Models that a recipe's sweep section asks for.

    Args:
        recipe: recipe of the main job.
        baseline_bytes: bytes of the unpruned model's exported weights; budgets are shares of it.
    """
    sweep = recipe.sweep
    points = [
        Point(f"keep-{keep * 100:g}{_routed(top_k)}-{name}", keep, None, name, top_k)
        for top_k in (None, *sweep.top_k)
        for keep in sweep.keeps
        for name in sweep.formats
    ]
    return points + [
        Point(f"bytes-{share * 100:g}-{name}", None, round(share * baseline_bytes), name)
        for share in sweep.budgets
        for name in (*sweep.formats, "auto")
    ]


def sweep_steps(recipe: Recipe, points: list[Point]) -> list[Step]:
    """All steps, each after the steps that it reads; points share calibration and importance.

    Args:
        recipe: recipe of the main job.
        points: models to export and measure.

    Raises:
        RecipeError: the recipe is a comparison of rankings, or lacks what a point needs.
    """
    if recipe.plan is None:
        raise RecipeError("a sweep needs a recipe of the main job, with a plan section")
    if recipe.plan.score == AUTO and any(point.experts == "auto" for point in points):
        raise RecipeError(
            "a sweep lets the plan choose formats at every budget, which needs one score, and "
            "plan.score is auto; give a score by name, or sweep.budgets: []"
        )
    steps: dict[str, Step] = {}
    reads: dict[str, str] = {}
    for point in points:
        inside = f"{POINTS}/{point.name}/"
        for step in between(steps_of(_recipe_of(recipe, point)), None, LAST)[0]:
            scores = f"importance{_routed(point.top_k)}"
            shared = {"calibrate": "calibrate", "importance": scores}
            if recipe.tune is not None and recipe.tune.after is None:
                shared["tune"] = f"tune{_routed(point.top_k)}"
            folder = shared.get(step.folder, inside + step.folder)
            where = {name: shared.get(of, inside + of) for name, of in step.reads.items()}
            if step.stage == "importance" and folder in steps:
                step = _with_all_scores(steps[folder], step)
            steps[folder] = Step(step.stage, folder, step.settings, where)
        for stage in ("plan", "export", LAST):
            reads[f"{point.name}/{stage}"] = f"{inside}{stage}"
    return [*steps.values(), Step("sweep", "sweep", recipe.sweep, reads)]


def _routed(top_k: int | None) -> str:
    """Part of a name that tells the experts per token; empty for the plan's own."""
    return "" if top_k is None else f"-top-{top_k}"


def _recipe_of(recipe: Recipe, point: Point) -> Recipe:
    """Recipe of the main job of one point."""
    assert recipe.plan is not None
    plan = recipe.plan.model_copy(
        update={
            "keep": point.keep,
            "target_bytes": point.target_bytes,
            "target_active_bytes": None,
            "speedup": None,
            "top_k": point.top_k or recipe.plan.top_k,
        }
    )
    quantize = recipe.quantize or QuantizeSettings()
    update: dict[str, Any] = {"experts": point.experts}
    quantized = quantize.model_copy(update=update | {"choices": recipe.sweep.formats})
    is_float = point.experts != "auto" and quantized.quantization().is_float
    changed = recipe.model_copy(update={"plan": plan, "quantize": None if is_float else quantized})
    try:
        check_auto(changed)
    except ValueError as error:
        raise RecipeError(f"the point {point.name} of the sweep: {error}") from error
    return changed


def _with_all_scores(first: Step, second: Step) -> Step:
    """Importance step that computes the scores of both."""
    names = [name for step in (first, second) for name in step.settings.scores]  # type: ignore[attr-defined]
    settings = first.settings.model_copy(update={"scores": tuple(dict.fromkeys(names))})
    return Step(first.stage, first.folder, settings, first.reads)
