"""Tests of `plan.top_k` from importance to pruning, and in recipes and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.ranking import Ranking
from moe_export.checkpoint import read_config
from moe_export.cli import main
from moe_export.errors import RecipeError
from moe_export.evaluation.masking import masked
from moe_export.experts import kept_rows
from moe_export.families import open_checkpoint
from moe_export.recipe import ImportanceSettings, PlanSettings, PruneSettings
from moe_export.recipe.load import parse_recipe
from moe_export.reporting.build_plan import model_facts
from moe_export.runner.sweep_steps import points_of, sweep_steps
from moe_export.stages import importance, plan, prune
from moe_export.stages.job import Job
from moe_export.testing.families import PHIMOE
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.small_runs import recipe, write_recipe
from tests.helpers.torch_models import some_tokens

TOKENS = 24 * 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("top_k")
    names = ("calibrate", "importance", "importance-whole", "plan", "prune")
    found = {name: root / name for name in names}
    found["model"] = tiny_checkpoint(root / "model")
    for name in names:
        found[name].mkdir()
    tokens = np.random.default_rng(3).integers(0, 256, TOKENS).astype(np.int32)
    zeros = np.zeros(24, np.int32)
    Calibration(tokens, np.arange(25, dtype=np.int64) * 32, zeros, zeros).save(found["calibrate"])
    for name, top_k in (("importance", 1), ("importance-whole", None)):
        settings = ImportanceSettings(batch_tokens=256, top_k=top_k)
        importance.run(Job(settings, found["model"], found, found[name]))
    settings = PlanSettings(keep=0.5, dtype="float32", top_k=1)
    plan.run(Job(settings, found["model"], found, found["plan"]))
    made = PruneSettings(refit=False, distill_blocks=False, save_padded=True)
    prune.run(Job(made, found["model"], found, found["prune"]))
    return found


def test_scores_are_those_of_the_model_with_fewer_experts(folders: dict[str, Path]) -> None:
    one, two = (Importance.load(folders[name]) for name in ("importance", "importance-whole"))
    assert [int(tokens_E.sum()) for tokens_E in one.tokens_per_expert] == [TOKENS] * 3
    assert [int(tokens_E.sum()) for tokens_E in two.tokens_per_expert] == [2 * TOKENS] * 3
    for ours_R, whole_R in zip(*(each.scores["fisher_margin"] for each in (one, two)), strict=True):
        assert np.abs(ours_R - whole_R).max() > 0.1 * np.abs(whole_R).max()


def test_active_bytes_of_the_plan_count_the_experts_of_each_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    found = Plan.load(folders["plan"])
    assert (found.top_k, found.top_k_before) == (1, 2)
    (tmp_path / "plan").mkdir()
    whole = PlanSettings(keep=1.0, dtype="float32", top_k=1)
    plan.run(Job(whole, folders["model"], folders, tmp_path / "plan"))
    models = Plan.load(tmp_path / "plan").export_bytes["float32"]
    assert models.before.total_bytes == models.after.total_bytes
    _, spec = open_checkpoint(folders["model"])
    expert_bytes = 4 * 3 * 24 * 64
    saved = models.before.active_bytes_per_token - models.after.active_bytes_per_token
    assert saved == expert_bytes * spec.num_layers


def test_masked_equals_removed_and_the_twin_has_as_many_experts(folders: dict[str, Path]) -> None:
    found = Plan.load(folders["plan"])
    _, spec = open_checkpoint(folders["model"], found.top_k)
    scores = Importance.load(folders["importance"]).scores["fisher_margin"]
    kept = [
        kept_rows(scores[layer], table, found.axis_widths_after[layer])
        for layer, table in enumerate(found.axis_of(spec).tables)
    ]
    model = load_torch_model(folders["model"], torch.float32, top_k=1)
    ids = some_tokens(2, 20)
    with torch.no_grad(), masked(model, kept):
        expected = model(ids).logits
    for folder in (folders["prune"], folders["prune"] / "padded"):
        assert read_config(folder)["num_experts_per_tok"] == 1
        with torch.no_grad():
            actual = load_torch_model(folder, torch.float32)(ids).logits
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_the_ranking_is_chosen_and_reported_with_fewer_experts(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    path = write_recipe(
        tmp_path,
        folders["model"],
        plan={"keep": 0.5, "top_k": 1, "score": "auto"},
        prune={"distill_blocks": False, "refit": True},
        ranking={"held_out": 4, "first": 2, "scores": ["fisher_margin", "magnitude"]},
    )
    run = tmp_path / "run"
    assert main(["run", str(path), "--run", str(run), "--until", "prune"]) == 0
    ranking = Ranking.load(run / "ranking")
    # A model with fewer experts diverges even where nothing is pruned.
    assert all(row.kl_nats is None or row.kl_nats > 0.01 for row in ranking.candidates)
    importance, of_plan = Importance.load(run / "importance"), Plan.load(run / "plan")
    facts = model_facts(run / "prune", of_plan, importance)
    assert (facts.experts_per_token, facts.experts_per_token_before) == (1, 2)
    active = facts.active_parameters_per_token
    assert active.after is not None
    assert active.before is not None
    assert active.after < active.before - 3 * 3 * 24 * 64


@pytest.mark.parametrize(("top_k", "reason"), [(0, "greater than or equal to 1"), (3, "1 to 2")])
def test_a_number_of_experts_that_the_model_has_not_stops_before_the_first_stage(
    tmp_path: Path,
    folders: dict[str, Path],
    top_k: int,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_plan = {"keep": 0.5, "score": "fisher_margin", "top_k": top_k}
    path = write_recipe(tmp_path, folders["model"], plan=of_plan)
    assert main(["run", str(path), "--run", str(tmp_path / "run")]) != 0
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run" / "calibrate").exists()


def test_a_padded_twin_is_refused_where_stock_loaders_take_two_experts_always(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_checkpoint(tmp_path / "phimoe", base=PHIMOE.config)
    spec = open_checkpoint(model)[1]
    settings = PruneSettings(save_padded=True)
    of_plan = Plan.load(folders["plan"])
    with pytest.raises(RecipeError, match=r"prune.save_padded .* phimoe always takes two"):
        prune._check_padded(settings, of_plan, spec)


def test_a_sweep_computes_scores_once_for_each_number_of_experts() -> None:
    content: dict[str, Any] = recipe(Path("model"), sweep={"top_k": [1], "budgets": []})
    content["sweep"] |= {"keeps": [1.0, 0.5], "formats": ["int4"]}
    made = parse_recipe(content)
    points = points_of(made, 1000)
    assert [point.name for point in points][2:] == ["keep-100-top-1-int4", "keep-50-top-1-int4"]
    steps = {step.folder: step for step in sweep_steps(made, points)}
    assert steps["importance-top-1"].settings.model_dump()["top_k"] == 1
    assert steps["importance"].settings.model_dump()["top_k"] is None
    reads = steps["points/keep-50-top-1-int4/plan"].reads
    assert reads["importance"] == "importance-top-1"
