"""Tests of plans with a byte budget, on the tiny model with invented importance."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_export.artifacts.exchange import Exchange, Measured
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.ranking import Candidate, Ranking
from moe_export.checkpoint import Checkpoint
from moe_export.errors import ArtifactError, PlanError, RecipeError
from moe_export.families import spec_of
from moe_export.formats import GRIDS
from moe_export.graph import predicted_bytes
from moe_export.quantization import Quantization
from moe_export.recipe import Formats, PlanSettings
from moe_export.stages.job import Job
from moe_export.stages.plan import run
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.tied_heads import untied_twin

TOKENS = np.array([400, 300, 200, 80, 20, 0])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("plan") / "model")


@pytest.fixture(scope="module")
def importance(model: Path) -> Path:
    folder = model.parent / "importance"
    folder.mkdir()
    random = np.random.default_rng(5)
    scores = [random.lognormal(0, 2, (6, 24)).reshape(-1) for _ in range(3)]
    named = {"fisher_margin": scores, "rounding_margin": scores}
    Importance(named, [TOKENS] * 3).save(folder)
    exchange_of(1.0).save(folder)
    return folder


def exchange_of(rate: float) -> Exchange:
    """Measurements in which rounding costs `rate` times its prediction, and dropping once."""
    return Exchange(
        rounded=(Measured(predicted=1.0, kl_nats=rate),) * 3,
        all_rounded=Measured(predicted=3.0, kl_nats=3 * rate),
        dropped=(Measured(predicted=1.0, kl_nats=1.0),),
        tokens=99,
        format="int4",
        group_size=32,
    )


def planned(model: Path, importance: Path, out: Path, **settings: Any) -> Plan:
    out.mkdir()
    plan = PlanSettings(dtype="float32", **settings)
    run(Job(plan, model, {"importance": importance}, out))
    return Plan.load(out)


def whole_bytes(model: Path) -> int:
    return predicted_bytes(spec_of(Checkpoint(model).config), "float32").total_bytes


def test_the_choice_of_the_ranking_stage_is_planned(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    choice = Candidate(
        score="rounding_margin", scope="layer", kept=0.5, first_kl_nats=0.1, sources=()
    )
    Ranking(
        choice=choice,
        candidates=(choice,),
        refitted=False,
        weights=(1.0,),
        answered=(False,),
        first_sequences=1,
        sequences=1,
        scored_tokens=9,
        unpruned_answer_loss_nats=None,
    ).save(tmp_path)
    found = tmp_path / "found"
    found.mkdir()
    settings = PlanSettings(dtype="float32", keep=0.5, score="auto")
    run(Job(settings, model, {"importance": importance, "ranking": tmp_path}, found))
    named = {"score": "rounding_margin", "scope": "layer", "keep": 0.5}
    assert Plan.load(found) == planned(model, importance, tmp_path / "named", **named)


@pytest.mark.parametrize("share", [0.49, 0.53, 0.57])
def test_a_budget_with_formats_left_open_is_kept_and_loses_less_than_one_format(
    model: Path, importance: Path, tmp_path: Path, share: float
) -> None:
    target = int(share * whole_bytes(model))
    found = {
        experts: planned(
            model,
            importance,
            tmp_path / experts,
            target_bytes=target,
            formats=Formats(experts=experts, choices=("float", "int8", "int4")),
        )
        for experts in ("auto", "int8", "int4")
    }
    bytes_ = found["auto"].export_bytes["float32"].quantized.total_bytes
    assert 0.95 * target < bytes_ <= target
    assert found["auto"].predicted_loss > 0
    alone = planned(
        model,
        importance,
        tmp_path / "alone",
        target_bytes=target,
        formats=Formats(experts="auto", choices=("int8",)),
    )
    assert found["auto"].predicted_loss <= alone.predicted_loss
    # With one choice the solver keeps as much as the plan of that format does.
    assert abs(alone.rows_after - found["int8"].rows_after) <= 2


def test_formats_with_zero_points_and_with_a_codebook_may_be_chosen(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    target = int(0.49 * whole_bytes(model))
    found = {}
    for name, choices in (("three", ("float", "int8", "int4")), ("all", ("float", *GRIDS))):
        formats = Formats(experts="auto", choices=choices)
        out = tmp_path / name
        found[name] = planned(model, importance, out, target_bytes=target, formats=formats)
    # The solver is not exact, but a choice more costs no more than a block of rows.
    assert found["all"].predicted_loss <= 1.01 * found["three"].predicted_loss
    for name in ("uint8", "uint4", "nf4"):
        formats = Formats(experts="auto", choices=(name,))
        plan = planned(model, importance, tmp_path / name, target_bytes=target, formats=formats)
        size = plan.export_bytes["float32"].quantized.total_bytes
        assert 0.95 * target < size <= target
        assert plan.quantization.experts == name
        fixed = Formats(experts=name)
        plain = planned(
            model, importance, tmp_path / f"{name}-", target_bytes=target, formats=fixed
        )
        assert abs(plan.rows_after - plain.rows_after) <= 2


def test_a_budget_of_active_bytes_is_kept_and_spares_rare_experts(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    whole = planned(model, importance, tmp_path / "whole", keep=1.0)
    before = whole.export_bytes["float32"].before.active_bytes_per_token
    target = int(0.9 * before)
    found = planned(model, importance, tmp_path / "active", target_active_bytes=target)
    active = found.export_bytes["float32"].after.active_bytes_per_token
    assert 0.98 * target < active <= target
    stored = planned(model, importance, tmp_path / "stored", keep=found.kept)
    assert active < stored.export_bytes["float32"].after.active_bytes_per_token
    widths = np.sum([layer.widths for layer in found.layers], axis=0)
    assert widths[5] == 3 * 24, "an expert that no token reads costs nothing"
    assert widths[0] < widths[4]


def test_two_budgets_are_kept_together_and_both_are_used(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    whole = planned(model, importance, tmp_path / "whole", keep=1.0).export_bytes["float32"].before
    # With one budget alone, the other is exceeded by either plan.
    limits = {
        "target_bytes": int(0.77 * whole.total_bytes),
        "target_active_bytes": int(0.82 * whole.active_bytes_per_token),
    }
    alone = {
        key: planned(model, importance, tmp_path / key, **{key: limit})
        for key, limit in limits.items()
    }
    sizes = {key: plan.export_bytes["float32"].after for key, plan in alone.items()}
    assert sizes["target_bytes"].active_bytes_per_token > limits["target_active_bytes"]
    assert sizes["target_active_bytes"].total_bytes > limits["target_bytes"]
    both = planned(model, importance, tmp_path / "both", **limits)
    found = both.export_bytes["float32"].after
    assert 0.99 * limits["target_bytes"] < found.total_bytes <= limits["target_bytes"]
    read = found.active_bytes_per_token
    assert 0.99 * limits["target_active_bytes"] < read <= limits["target_active_bytes"]
    assert both.predicted_loss > alone["target_active_bytes"].predicted_loss


def test_active_bytes_are_those_that_a_token_is_multiplied_with(model: Path) -> None:
    spec = spec_of(Checkpoint(model).config)
    shares = [np.full(6, 2 / 6)] * 3
    found = predicted_bytes(spec, "float32").active_bytes(spec, shares)
    expected = sum(
        t.elements * (1 if t.expert is None else 2 / 6)
        for t in spec.tensors.values()
        if t.role != "embedding"
    )
    assert found == 4 * (expected + spec.hidden_size)


@pytest.mark.parametrize("key", ["target_bytes", "target_active_bytes"])
def test_a_budget_below_the_floats_of_what_is_quantized_elsewhere_is_kept(
    model: Path, importance: Path, tmp_path: Path, key: str
) -> None:
    formats = Formats(experts="auto", choices=("int8", "int4"), dense="int8", embedding="int8")
    spec = replace(
        spec_of(Checkpoint(model).config), quantization=Quantization("int4", "int8", "int8")
    )
    ends = []
    for each in (replace(spec, widths=((0,) * 6,) * 3), spec):
        sizes = predicted_bytes(each, "float32")
        shares = [TOKENS * 2 / TOKENS.sum()] * 3
        ends.append(
            sizes.total_bytes if key == "target_bytes" else sizes.active_bytes(each, shares)
        )
    target = sum(ends) // 2
    found = planned(model, importance, tmp_path / "plan", **{key: target}, formats=formats)
    found_bytes = found.export_bytes["float32"].quantized
    spent = found_bytes.total_bytes if key == "target_bytes" else found_bytes.active_bytes_per_token
    assert 0.98 * target < spent <= target


@pytest.fixture(scope="module")
def tied(importance: Path) -> Path:
    return tiny_checkpoint(importance.parent / "tied", tie_word_embeddings=True)


@pytest.mark.parametrize(
    "budget",
    [
        {"keep": 0.5, "formats": Formats(lm_head="uint4", embedding="int8")},
        {"target_bytes": 190_000, "formats": Formats(dense="int8")},
        {"target_bytes": 190_000, "formats": Formats(experts="auto", dense="int8")},
        {"target_active_bytes": 66_000, "formats": Formats(experts="auto", dense="int4")},
        {
            "speedup": 1.1,
            "shared_expert": "keep",
            "formats": Formats(dense="int4", embedding="int8"),
        },
    ],
    ids=str,
)
def test_a_tied_model_is_planned_with_the_quantized_head_that_it_gets(
    tied: Path, importance: Path, tmp_path: Path, budget: dict[str, Any]
) -> None:
    plan = planned(tied, importance, tmp_path / "plan", **budget)
    twin = planned(untied_twin(tied, tmp_path / "twin"), importance, tmp_path / "other", **budget)
    assert 0.1 < plan.kept < 0.99
    assert plan.axis_widths_after == twin.axis_widths_after
    assert plan.quantization == twin.quantization
    spec = spec_of(Checkpoint(tied).config)
    for dtype, models in plan.export_bytes.items():
        expected = twin.export_bytes[dtype]
        assert models.quantized == expected.quantized
        assert models.before_quantized == expected.before_quantized
        table_bytes = spec.vocab_size * spec.hidden_size * np.dtype(dtype).itemsize
        assert expected.before.total_bytes - models.before.total_bytes == table_bytes


def test_an_embedding_that_is_the_lm_head_in_floats_too_is_not_quantized(
    tied: Path, importance: Path, tmp_path: Path
) -> None:
    formats = Formats(embedding="int8")
    with pytest.raises(RecipeError, match=r"quantize.embedding is int8.*same table .* in floats"):
        planned(tied, importance, tmp_path / "plan", keep=0.5, formats=formats)


def test_a_budget_below_what_is_fixed_is_refused(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="outside the experts that are pruned"):
        planned(
            model,
            importance,
            tmp_path / "none",
            target_bytes=1000,
            formats=Formats(experts="auto"),
        )


def test_what_rounding_was_measured_to_cost_decides_between_it_and_dropping(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    kept = {}
    for rate in (1e-4, 1e4):
        folder = tmp_path / str(rate)
        shutil.copytree(importance, folder)
        exchange_of(rate).save(folder)
        found = planned(
            model,
            folder,
            folder / "plan",
            target_bytes=int(0.53 * whole_bytes(model)),
            formats=Formats(experts="auto"),
        )
        kept[rate] = found.kept
        formats = found.quantization.experts
        assert ("int4" in formats) == (rate < 1), formats
    assert kept[1e-4] > kept[1e4]


def test_formats_are_not_chosen_without_the_measurement(
    model: Path, importance: Path, tmp_path: Path
) -> None:
    shutil.copytree(importance, tmp_path / "importance")
    (tmp_path / "importance" / Exchange.FILE).unlink()
    with pytest.raises(ArtifactError, match=r"exchange\.json is missing; run the stage"):
        planned(
            model,
            tmp_path / "importance",
            tmp_path / "plan",
            target_bytes=int(0.53 * whole_bytes(model)),
            formats=Formats(experts="auto"),
        )
