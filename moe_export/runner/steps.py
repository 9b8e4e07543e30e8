"""Steps of a run, made from a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moe_export.errors import RecipeError
from moe_export.recipe import (
    AUTO,
    ROUNDING_OF,
    BakeoffSettings,
    EvalSettings,
    Formats,
    ImportanceSettings,
    PlanSettings,
    PruneSettings,
    QuantizeSettings,
    RankingSettings,
    Recipe,
    Section,
    TuneSettings,
)
from moe_export.stages import MAIN_JOB, STAGES

TUNE = "tune"
"""Stage that trains the model, and its folder."""


@dataclass(frozen=True)
class Step:
    """Execution of one stage in one folder of the run.

    Attributes:
        stage: name of the stage's module under `moe_export.stages`.
        folder: the step's folder, relative to the run directory.
        settings: section of the recipe that the stage is run with.
        reads: folders that the stage reads, by the name under which it asks for them.
    """

    stage: str
    folder: str
    settings: Section
    reads: Mapping[str, str]


def steps_of(recipe: Recipe) -> list[Step]:
    """Steps of a recipe, each after the steps that it reads."""
    if recipe.bakeoff is not None:
        return _bakeoff_steps(recipe)
    settings = {
        stage: section for stage in MAIN_JOB if (section := recipe.section(stage)) is not None
    }
    if recipe.plan is None or recipe.plan.score != AUTO:
        del settings["ranking"]
    # The plan predicts the bytes of what will be exported.
    assert recipe.plan is not None
    exported: dict[str, Any] = {}
    if recipe.quantize is not None:
        formats = Formats(**recipe.quantize.model_dump(include=set(Formats.model_fields)))
        exported["formats"] = formats
        if formats.experts == "auto":
            # The plan weighs the cost of rounding against that of dropping.
            scores = tuple(
                dict.fromkeys((*recipe.importance.scores, ROUNDING_OF[recipe.plan.score]))
            )
            settings["importance"] = recipe.importance.model_copy(update={"scores": scores})
    if recipe.plan.prunes_shared:
        settings["importance"] = settings["importance"].model_copy(update={"shared_expert": True})
    if recipe.plan.top_k is not None:
        settings["importance"] = settings["importance"].model_copy(
            update={"top_k": recipe.plan.top_k}
        )
    if recipe.export.layout != "portable":
        exported["layout"] = recipe.export.layout
    if recipe.export.linear != "auto":
        exported["linear"] = recipe.export.linear
    settings["plan"] = recipe.plan.model_copy(update=exported)
    if recipe.eval is not None:
        settings["eval"] = _eval_settings(recipe, recipe.eval)
        # A limit of eval's does not make validation run again.
        gates = recipe.validate_.gates.model_copy(update={"eval": None})
        settings["validate"] = recipe.validate_.model_copy(update={"gates": gates})
    if "ranking" in settings:
        settings |= _chosen(recipe, settings)
    steps = [
        Step(
            stage, stage, section, {name: name for name in STAGES[stage].reads if name in settings}
        )
        for stage, section in settings.items()
    ]
    return steps if recipe.tune is None else _tuned(steps, recipe.tune, recipe.plan)


def _tuned(steps: list[Step], tune: TuneSettings, plan: PlanSettings) -> list[Step]:
    """The steps with that of tuning in its place.

    After pruning, the stages that read the pruned checkpoint are given the tuned one under its
    name; the report reads both.
    """
    first, *others = steps
    if tune.after is None:
        top_k = {"top_k": plan.top_k}
        return [replace(first, settings=tune.model_copy(update=top_k)), *others]
    place = 1 + [step.stage for step in others].index("prune")
    before = [_without_tuned(step) for step in others[:place]]
    after = [
        step
        if step.stage == "report"
        else _without_tuned(
            replace(step, reads={n: TUNE if n == "prune" else of for n, of in step.reads.items()})
        )
        for step in others[place:]
    ]
    return [*before, replace(first, reads={"prune": "prune"}), *after]


def _without_tuned(step: Step) -> Step:
    return replace(step, reads={name: of for name, of in step.reads.items() if name != TUNE})


def is_tuned(step: Step) -> bool:
    """True if a step works on the tuned model in place of the source."""
    return TUNE in step.reads and step.stage != "report"


def _eval_settings(recipe: Recipe, section: EvalSettings) -> EvalSettings:
    """Tasks with the provider, the operator and the limit of the validate section."""
    validate = recipe.validate_
    return section.model_copy(
        update={
            "provider": validate.providers[0],
            "operators": section.operators or (validate.operator,),
            "max_fall": validate.gates.eval,
        }
    )


def _chosen(recipe: Recipe, settings: Mapping[str, Section]) -> dict[str, Section]:
    """Sections of the stages that a choice among rankings needs more of."""
    ranking, importance = recipe.ranking, settings["importance"]
    assert isinstance(importance, ImportanceSettings)
    # Scores that no candidate has are computed only if the recipe names them.
    named = importance.scores if importance.scores != ImportanceSettings().scores else ()
    scores = tuple(dict.fromkeys((*named, *ranking.scores)))
    return {
        "calibrate": recipe.calibrate.model_copy(update={"held_out": ranking.held_out}),
        "importance": importance.model_copy(update={"scores": scores}),
        "ranking": ranking.model_copy(update={"plan": settings["plan"], "prune": recipe.prune}),
    }


def depends_on_threads(step: Step) -> bool:
    """True if the number of torch's threads changes what a step writes.

    Some sums of torch in float32 are split by threads. The other steps compute in numpy or in the
    native library, where no sum is split.
    """
    settings = step.settings
    if isinstance(settings, PruneSettings):
        return settings.fits
    if isinstance(settings, TuneSettings):
        return True
    if isinstance(settings, QuantizeSettings):
        return settings.method == "gptq"
    return isinstance(
        settings, ImportanceSettings | RankingSettings | BakeoffSettings | EvalSettings
    )


def _bakeoff_steps(recipe: Recipe) -> list[Step]:
    """Calibration and importance once per seed, then the comparison of all of them."""
    bakeoff = recipe.bakeoff
    assert bakeoff is not None
    chooses = AUTO in bakeoff.scores
    held_out = {"held_out": recipe.ranking.held_out} if chooses else {}
    scores = _compared(bakeoff, recipe)
    if chooses or True in bakeoff.refit:
        bakeoff = bakeoff.model_copy(update={"prune": recipe.prune})
    if chooses:
        bakeoff = bakeoff.model_copy(update={"ranking": recipe.ranking})
    steps = []
    draws: dict[str, str] = {}
    for seed in bakeoff.seeds:
        draw = f"draw-{seed}"
        calibrated = f"{draw}/calibrate"
        steps += [
            Step(
                "calibrate",
                calibrated,
                recipe.calibrate.model_copy(update={"seed": seed, **held_out}),
                {},
            ),
            Step(
                "importance",
                f"{draw}/importance",
                recipe.importance.model_copy(update={"scores": scores}),
                {"calibrate": calibrated},
            ),
        ]
        draws |= {draw: f"{draw}/importance", calibrated: calibrated}
    return [*steps, Step("bakeoff", "bakeoff", bakeoff, draws)]


def _compared(bakeoff: BakeoffSettings, recipe: Recipe) -> tuple[str, ...]:
    """Scores that a comparison needs."""
    scores = [score for score in bakeoff.scores if score != AUTO]
    if AUTO in bakeoff.scores:
        scores += recipe.ranking.scores
    return tuple(dict.fromkeys((*scores, *bakeoff.whole_expert_scores)))


def between(steps: list[Step], first: str | None, last: str | None) -> tuple[list[Step], set[str]]:
    """Steps up to a last stage, and folders of the steps that run again in any case.

    Args:
        steps: steps of a recipe, in order.
        first: stage from which on every step runs again; None for no step.
        last: last stage to run; None for all.

    Returns:
        The steps up to `last`, and the folders of those from `first` on.

    Raises:
        RecipeError: a name is not a stage of this recipe.
    """
    names = list(dict.fromkeys(step.stage for step in steps))
    for name in (first, last):
        if name is not None and name not in names:
            raise RecipeError(f"{name!r} is not a stage of this recipe; it has {', '.join(names)}")
    wanted = names if last is None else names[: names.index(last) + 1]
    kept = [step for step in steps if step.stage in wanted]
    forced = set() if first is None else set(names[names.index(first) :])
    return kept, {step.folder for step in kept if step.stage in forced}
