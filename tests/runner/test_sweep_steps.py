"""The steps of a sweep, and what is made of its points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_export.artifacts.documents import DocumentScores
from moe_export.artifacts.sweep import Point, PointScores, Sweep
from moe_export.errors import RecipeError
from moe_export.quantization import choices_for_experts
from moe_export.recipe import ROUNDING_SCORE, Recipe, SweepSettings
from moe_export.recipe.load import parse_recipe
from moe_export.reporting.figures_sweep import INK, NOT_FOR_POINTS, inks_of
from moe_export.reporting.palette import colour
from moe_export.reporting.sweep_front import front
from moe_export.reporting.sweep_table import repeats_sentence
from moe_export.reporting.sweep_verdicts import sentence, shares, verdicts
from moe_export.runner.steps import steps_of
from moe_export.runner.sweep_steps import points_of, sweep_steps
from moe_export.stages.job import Job
from moe_export.stages.sweep import run
from tests.helpers.synthetic_runs import write_run

RECIPE: dict[str, Any] = {
    "model": {"source": "demo"},
    "calibrate": {"sources": ({"demo": "sums"},)},
    "plan": {"keep": 0.5, "score": "fisher_margin"},
    "sweep": {"keeps": (1.0, 0.5), "formats": ("float", "int4"), "budgets": (0.25,)},
}

NAMES = [
    "keep-100-float", "keep-100-int4", "keep-50-float", "keep-50-int4",
    "bytes-25-float", "bytes-25-int4", "bytes-25-auto",
]  # fmt: skip


def test_choosing_formats_adds_the_cost_of_rounding_in_the_unit_of_the_ranking() -> None:
    score = "fisher_margin_weighted"
    recipe = Recipe.model_validate(
        RECIPE
        | {
            "importance": {"scores": (score,)},
            "plan": {"target_bytes": 1000, "score": score},
            "quantize": {"experts": "auto"},
        }
    )
    importance: Any = next(step for step in steps_of(recipe) if step.stage == "importance")
    assert importance.settings.scores == (score, "rounding_margin_weighted")


def test_a_choice_among_rankings_adds_its_stage_and_what_it_reads() -> None:
    recipe = Recipe.model_validate(
        RECIPE
        | {
            "plan": {"keep": 0.5, "score": "auto"},
            "ranking": {"scores": ("fisher", "activation"), "held_out": 7},
        }
    )
    steps: dict[str, Any] = {step.stage: step for step in steps_of(recipe)}
    assert list(steps)[:4] == ["calibrate", "importance", "ranking", "plan"]
    assert steps["calibrate"].settings.held_out == 7
    assert steps["importance"].settings.scores == ("fisher", "activation")
    assert steps["ranking"].settings.plan == steps["plan"].settings
    assert "ranking" in steps["plan"].reads
    # The recipe in a run directory has all defaults written out.
    assert steps_of(parse_recipe(recipe.plain())) == list(steps.values())
    assert "ranking" not in {step.stage for step in steps_of(Recipe.model_validate(RECIPE))}


def test_a_sweep_that_chooses_formats_refuses_a_choice_among_rankings() -> None:
    recipe = Recipe.model_validate(RECIPE | {"plan": {"keep": 0.5, "score": "auto"}})
    with pytest.raises(RecipeError, match=r"give a score by name, or sweep.budgets: \[\]"):
        sweep_steps(recipe, points_of(recipe, 1000))


def test_the_grid_and_the_budgets_are_points() -> None:
    points = points_of(Recipe.model_validate(RECIPE), 1000)
    assert [point.name for point in points] == NAMES
    assert [point.target_bytes for point in points] == [None] * 4 + [250] * 3


def test_a_budget_is_refused_with_a_ranking_that_rounding_cannot_be_weighed_against() -> None:
    ranked = RECIPE | {
        "importance": {"scores": ("magnitude",)},
        "plan": {"keep": 0.5, "score": "magnitude"},
    }
    recipe = Recipe.model_validate(ranked)
    with pytest.raises(RecipeError, match=r"the point bytes-25-auto .* give plan.score fisher"):
        sweep_steps(recipe, points_of(recipe, 1000))
    no_budgets = Recipe.model_validate(ranked | {"sweep": {"formats": ("int4",), "budgets": ()}})
    assert sweep_steps(no_budgets, points_of(no_budgets, 1000))[-1].stage == "sweep"


def test_calibration_and_importance_are_shared_and_every_step_follows_what_it_reads() -> None:
    recipe = Recipe.model_validate(RECIPE)
    steps = sweep_steps(recipe, points_of(recipe, 1000))
    assert [step.stage for step in steps].count("calibrate") == 1
    assert [step.stage for step in steps].count("importance") == 1
    assert [step.stage for step in steps].count("quantize") == 4
    seen: set[str] = set()
    for step in steps:
        assert set(step.reads.values()) <= seen, step.folder
        seen.add(step.folder)
    importance = next(step for step in steps if step.stage == "importance")
    assert ROUNDING_SCORE in importance.settings.scores  # type: ignore[attr-defined]
    by_folder = {step.folder: step.settings for step in steps}
    auto: Any = by_folder["points/bytes-25-auto/plan"]
    assert (auto.keep, auto.target_bytes, auto.formats.experts) == (None, 250, "auto")
    assert auto.formats.choices == ("float", "int4")
    plain: Any = by_folder["points/keep-50-float/plan"]
    assert (plain.keep, plain.target_bytes, plain.formats) == (0.5, None, None)
    assert steps[-1].folder == "sweep"


def test_a_sweep_prunes_the_shared_expert_in_all_points_where_the_plan_does() -> None:
    recipe = Recipe.model_validate(RECIPE | {"plan": RECIPE["plan"] | {"shared_expert": "prune"}})
    steps = sweep_steps(recipe, points_of(recipe, 1000))
    settings: dict[str, list[Any]] = {"importance": [], "plan": []}
    for step in steps:
        settings.get(step.stage, []).append(step.settings)
    assert [of.shared_expert for of in settings["importance"]] == [True]
    assert [of.shared_expert for of in settings["plan"]] == ["prune"] * 7


def test_a_comparison_of_rankings_cannot_be_swept() -> None:
    bakeoff = {"scores": ("fisher",), "keeps": (0.5,), "tasks": ({"demo": "sums"},)}
    recipe = Recipe.model_validate(
        {key: RECIPE[key] for key in ("model", "calibrate")} | {"bakeoff": bakeoff}
    )
    with pytest.raises(RecipeError, match="needs a recipe of the main job"):
        sweep_steps(recipe, [])


def point(
    name: str, weights_bytes: int, match: float, kl_nats: float, ratio: float | None = None
) -> Point:
    return Point(
        name=name,
        experts=name.rsplit("-", maxsplit=1)[-1],
        formats=name.rsplit("-", maxsplit=1)[-1],
        kept=0.5,
        weights_bytes=weights_bytes,
        active_bytes_per_token=weights_bytes // 2,
        mean_exact_match=match,
        mean_kl_nats=kl_nats,
        tasks={"sums": PointScores(exact_match=match, loss_nats=0.1)},
        decode_tokens_per_s=None,
        decode_ratio=ratio,
        speed_setting=None,
    )


def test_on_the_front_are_the_points_that_none_beats() -> None:
    points = [
        point("a", 30, 0.9, 0.0),
        point("b", 10, 0.5, 0.0),
        point("c", 20, 0.5, 0.0),
        point("d", 40, 0.8, 0.0),
        point("e", 10, 0.6, 0.0),
    ]
    assert [p.name for p in front(points)] == ["e", "a"]


def documents(right: int, kl_nats: float) -> dict[str, DocumentScores]:
    """A hundred of one token; every other one a little further away."""
    spread = tuple(kl_nats * (1.1 if n % 2 else 0.9) for n in range(100))
    matches = tuple(n < right for n in range(100))
    return {"sums": DocumentScores(tokens=(1,) * 100, matches=matches, kl_nats=spread)}


def test_the_verdict_is_against_the_best_of_no_more_bytes() -> None:
    points = [
        point("keep-50-int8", 26, 1.0, 0.0),
        point("keep-50-int4", 20, 0.81, 0.3),
        point("bytes-25-float", 24, 0.2, 0.01),
        point("bytes-25-auto", 25, 0.8, 0.1),
    ]
    found_of = {p.name: documents(round(100 * p.mean_exact_match), p.mean_kl_nats) for p in points}
    assert shares(points) == ["25"]
    (found,) = verdicts(points, 100, found_of)
    assert (found.own, found.others) == ("bytes-25-auto", 2)
    by_kl, by_match = found.by_kl, found.by_match
    assert (by_kl.best, by_kl.verdict) == ("bytes-25-float", "worse")
    assert by_kl.difference == pytest.approx(0.09)
    # Differences of 0.081 and 0.099 by turns.
    assert by_kl.stderr == pytest.approx(0.009 / 99**0.5)
    # A single document of a hundred.
    assert (by_match.best, by_match.verdict) == ("keep-50-int4", "equal within error")
    assert by_match.difference == pytest.approx(-0.01)
    assert by_match.stderr == pytest.approx((0.01 * 0.99 / 99) ** 0.5)
    assert (by_match.only_own, by_match.only_other, by_match.documents) == (0, 1, 100)
    said = sentence(points, found)
    assert "By KL: worse, against 0.0100 nats (50 % kept, float)" in said
    assert "By exact match: equal within error, against 81 % (50 % kept, int4)" in said
    assert "a difference of -1.00 ± 1.00 points" in said


def test_a_choice_that_nothing_rivals_is_said_to_be_the_only_one() -> None:
    points = [point("keep-50-int8", 26, 1.0, 0.0), point("bytes-25-auto", 25, 0.8, 0.1)]
    (found,) = verdicts(points, 100, {"bytes-25-auto": documents(80, 0.1)})
    assert sentence(points, found).endswith("is the only one that fits.")


def test_ratios_of_speed_are_as_good_as_those_of_one_model_agree() -> None:
    points = [
        point("keep-100-int8", 26, 0.9, 0.1, 1.2),
        point("bytes-40-int8", 26, 0.9, 0.1, 1.5),
        point("keep-50-int8", 13, 0.8, 0.2, 9.0),
    ]
    assert repeats_sentence(points).endswith("differ by up to 1.25 times.")
    assert repeats_sentence(points[1:]) == ""


def test_every_format_has_a_colour_of_its_own() -> None:
    assert {*choices_for_experts(), "auto"} == INK.keys()
    assert len({colour(name) for name in INK.values()}) == len(INK)


def test_a_format_that_is_new_gets_a_free_colour() -> None:
    inks = inks_of([*(name for name in INK if name != "auto"), "fp6"])
    assert {name: ink for name, ink in inks.items() if name != "fp6"} == INK
    assert inks["fp6"] not in INK.values()
    assert inks["fp6"] not in NOT_FOR_POINTS


def test_the_stage_gathers_the_points_into_data_a_table_and_a_picture(tmp_path: Path) -> None:
    folders = {}
    for number, name in enumerate(("keep-50-float", "bytes-50-float", "bytes-50-auto")):
        of = write_run(tmp_path / name, keep=0.5 - 0.1 * number, seed=number)
        folders |= {f"{name}/{stage}": of[stage] for stage in ("plan", "export", "validate")}
    out = tmp_path / "sweep"
    out.mkdir()
    run(Job(SweepSettings(), tmp_path, folders, out))
    found = Sweep.load(out)
    assert [p.name for p in found.points] == [
        "keep-50-float", "bytes-50-float", "bytes-50-auto",
    ]  # fmt: skip
    first = found.points[0]
    assert first.kept == 0.5
    assert first.mean_kl_nats == pytest.approx(0.0213)
    assert found.baseline.weights_bytes > first.weights_bytes
    table, page = ((out / name).read_text() for name in (Sweep.TABLE, Sweep.PAGE))
    assert "50 % of the unpruned bytes: the plan's choice" in table
    assert page.count("<svg") == 2
    assert "https://" not in page
    assert "mathdefault" not in page, "tick labels are words, not formulas"
    assert "0.01" in page
