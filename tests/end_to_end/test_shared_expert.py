"""Tests of all stages with a pruned shared expert: packed, quantized, by several workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_export.artifacts.plan import Plan
from moe_export.cli import main
from moe_export.recipe.load import load_recipe
from moe_export.runner.estimate import estimate
from moe_export.runner.steps import steps_of
from moe_export.testing.families import MIXTRAL
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.variants import QUANTIZED, VARIANTS
from tests.end_to_end.test_workers import torchrun
from tests.helpers.small_runs import artifacts, write_recipe

PLAN = {"target_active_bytes": 95_000, "shared_expert": "prune"}
SECTIONS: dict[str, Any] = {
    "plan": PLAN,
    "quantize": {"experts": "auto", "choices": ["int8", "int4"], "dense": "int8"},
    "export": {"layout": "packed"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(home, model, **SECTIONS)
    assert main(["run", str(recipe), "--run", str(home / "run")]) == 0
    return home / "run"


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_the_product_keeps_the_budget_and_has_the_predicted_bytes(run: Path) -> None:
    plan = Plan.load(run / "plan")
    active = plan.bytes_of(QUANTIZED, "float32").active_bytes_per_token
    assert 0.95 * PLAN["target_active_bytes"] < active <= PLAN["target_active_bytes"]
    for variant in VARIANTS:
        data = run / "export" / variant / "model.onnx.data"
        assert data.stat().st_size == plan.bytes_of(variant, "float32").total_bytes
    shared = [layer.shared_width for layer in plan.layers]
    assert content(run / "quantize" / "config.json")["shared_expert_widths"] == shared
    assert any(0 < width < 40 for width in shared)
    assert all(gate["passed"] for gate in content(run / "validate" / "validation.json")["gates"])


def test_report_plan_and_comparison_show_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = content(run / "report" / "report.json")
    widths = [layer["shared_width"] for layer in report["plan"]["layers"]]
    assert report["plan"]["shared_expert"] == "prune"
    assert [layer["shared_width_before"] for layer in report["plan"]["layers"]] == [40] * 3
    for name in ("report.md", "report.html"):
        text = (run / "report" / name).read_text()
        assert f"The shared expert keeps {min(widths)} to {max(widths)} of 40 dimensions" in text
        for width in widths:
            assert f"{width} of 40" in text
    for entry in report["memory"]["variants"]:
        assert 0 < entry["active_bytes_per_token"] < entry["weights_bytes"]
    both = report["memory"]["unpruned_quantized"]
    assert 0 < both["active_bytes_per_token"] < both["weights_bytes"]
    capsys.readouterr()
    assert main(["plan", str(run.parent / "recipe.yaml"), "--run", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"{widths[0]} of 40" in shown
    assert "read per token, float32:" in shown
    assert main(["compare", str(run), "--json", str(tmp_path / "compared.json")]) == 0
    assert "shared expert kept" in capsys.readouterr().out
    columns = content(tmp_path / "compared.json")["columns"]
    kept = [column["shared_expert_kept"] for column in columns]
    assert kept == [1.0] + [pytest.approx(sum(widths) / 120)] * 2
    assert all(column["active_bytes_per_token"] for column in columns)


def test_another_word_scores_and_plans_anew(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(run.parent / "recipe.yaml")
    capsys.readouterr()
    main(["status", recipe, "--run", str(run), "--set", "plan.shared_expert=keep"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    states = {line[0]: line[1] for line in lines if len(line) > 1}
    assert states["calibrate"] == "fresh"
    assert states["importance"].startswith("stale: settings.shared_expert")


def test_scores_are_those_that_the_recipe_needs(run: Path) -> None:
    steps = {
        step.stage: step.settings for step in steps_of(load_recipe(run.parent / "recipe.yaml"))
    }
    assert steps["importance"].model_dump(exclude_none=True)["shared_expert"] is True
    keeping = load_recipe(run.parent / "recipe.yaml", ("plan.shared_expert=keep",))
    steps = {step.stage: step.settings for step in steps_of(keeping)}
    assert "shared_expert" not in steps["importance"].model_dump(exclude_none=True)


def test_estimates_follow_the_budget(model: Path, tmp_path: Path) -> None:
    def disk(word: str) -> dict[str, int]:
        plan = {"keep": 0.25, "shared_expert": word, "score": "fisher_margin"}
        recipe = write_recipe(tmp_path, model, plan=plan)
        return {e.stage: e.disk_bytes for e in estimate(load_recipe(recipe), model)}

    keep, prune = disk("keep"), disk("prune")
    # Three quarters of the shared expert of 40 dimensions, three matrices by 64 in three layers.
    assert keep["prune"] - prune["prune"] == 2 * 30 * 3 * 64 * 3
    assert prune["importance"] == keep["importance"] + 8 * 3 * 40
    wide, narrow = (
        {e.stage: e.disk_bytes for e in estimate(load_recipe(run_recipe), model)}
        for bytes_ in (100_000, 80_000)
        for run_recipe in [
            write_recipe(
                tmp_path, model, **SECTIONS | {"plan": PLAN | {"target_active_bytes": bytes_}}
            )
        ]
    )
    assert narrow["prune"] < wide["prune"]


def test_a_model_without_a_shared_expert_stops_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_checkpoint(tmp_path / "model", base=MIXTRAL.config)
    recipe = write_recipe(tmp_path, model, plan={"keep": 0.5, "shared_expert": "prune"})
    for extra in (["--dry-run"], []):
        assert main(["run", str(recipe), "--run", str(tmp_path / "run"), *extra]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "plan.shared_expert is prune, but this mixtral has no shared expert" in error
    assert not (tmp_path / "run").exists()


def test_two_workers_write_the_bytes_of_one(run: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as in the workers: several threads may round a sum differently
    recipe = str(run.parent / "recipe.yaml")
    until = ["--until", "plan"]
    assert main(["run", recipe, "--run", str(tmp_path / "one"), *until]) == 0
    done = torchrun(2, "run", recipe, "--directory", str(tmp_path / "two"), *until)
    assert done.returncode == 0, done.stderr
    assert artifacts(tmp_path / "two") == artifacts(tmp_path / "one")
