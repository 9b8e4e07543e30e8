from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.plan import Plan
from moe_export.cli import main
from moe_export.stages import MAIN_JOB
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.variants import VARIANTS
from tests.helpers.small_runs import artifacts, write_recipe

SECTIONS: dict[str, Any] = {
    "ranking": {
        "scores": ["fisher_margin", "activation"],
        "scopes": ["model"],
        "held_out": 2,
        "first": 1,
        "finalists": 1,
    },
    "plan": {"keep": 0.5, "score": "auto"},
    "prune": {"save_padded": True},
}
"""Sections that let every stage run but eval, which needs lm-eval."""

STEPS = tuple(stage for stage in MAIN_JOB if stage not in ("tune", "eval"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directory of all stages, with the recipe beside it."""
    home = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(home, model, **SECTIONS)
    assert main(["run", str(recipe), "--run", str(home / "run")]) == 0
    return home / "run"


def test_every_stage_leaves_its_mark_and_its_files(finished: Path) -> None:
    assert {path.parent.name for path in finished.glob("*/stage.json")} == set(STEPS)
    for name in ("model.onnx", "model.onnx.data", "tokenizer.json", "genai_config.json"):
        for variant in VARIANTS:
            assert (finished / "export" / variant / name).exists()
    assert (finished / "report" / "report.html").exists()
    assert main(["verify", str(finished)]) == 0


def test_every_stage_says_what_it_was_predicted_to_take(finished: Path) -> None:
    for mark in finished.glob("*/stage.json"):
        content = json.loads(mark.read_text())
        assert content["predicted"].keys() == {"wall_s", "peak_resident_bytes", "output_bytes"}
    stages = json.loads((finished / "report" / "report.json").read_text())["stages"]
    assert all(stage["predicted"]["wall_s"] > 0 for stage in stages)
    assert not list(finished.glob("*.partial"))


def test_predicted_bytes_are_the_bytes_on_disk(finished: Path) -> None:
    plan = Plan.load(finished / "plan")
    for variant in VARIANTS:
        data = finished / "export" / variant / "model.onnx.data"
        assert data.stat().st_size == plan.bytes_of(variant, "float32").total_bytes
    ledger = Ledger.load(finished / "prune")
    assert ledger.tensor_bytes == plan.checkpoint_tensor_bytes
    assert ledger.counts.dropped == 0


def test_every_checkpoint_and_export_has_a_card(finished: Path) -> None:
    folders = [finished / "prune", finished / "prune" / "padded"]
    folders += [finished / "export" / variant for variant in VARIANTS]
    cards = [(folder / "README.md").read_text() for folder in folders]
    assert all("expert dimensions kept" in card for card in cards)
    assert "import moe_export" in cards[0]
    assert "import moe_export" not in cards[1]


def test_packed_models_pass_the_same_gates_and_have_the_predicted_bytes(
    finished: Path, model: Path, tmp_path: Path
) -> None:
    export = {"export": {"layout": "packed", "linear": "standard"}}
    recipe = write_recipe(tmp_path, model, **SECTIONS | export)
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--run", str(run)]) == 0
    plan = Plan.load(run / "plan")
    for variant in VARIANTS:
        data = run / "export" / variant / "model.onnx.data"
        assert data.stat().st_size == plan.bytes_of(variant, "float32").total_bytes
        portable = finished / "export" / variant / "model.onnx.data"
        assert data.stat().st_size != portable.stat().st_size
    validations = [
        json.loads((folder / "validate" / "validation.json").read_text())
        for folder in (run, finished)
    ]
    assert all(gate["passed"] for gate in validations[0]["gates"])
    # The same kernels on the same panels, and the same nodes outside the experts: what is measured
    # is the same to the bit.
    assert validations[0] == validations[1]


def test_the_exported_model_agrees_with_torch(finished: Path) -> None:
    validation = json.loads((finished / "validate" / "validation.json").read_text())
    found = validation["providers"]["cpu"]
    assert found["parity"]["pruned"]["max_logit_error"] <= 1e-4
    assert found["greedy"]["pruned"]["agreement"] == 1.0
    assert all(gate["passed"] for gate in validation["gates"])


def test_two_runs_give_the_same_bytes(finished: Path, model: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, model, **SECTIONS)
    assert main(["run", str(recipe), "--run", str(tmp_path / "run")]) == 0
    again = artifacts(tmp_path / "run")
    assert again.keys() == artifacts(finished).keys()
    for name, content in artifacts(finished).items():
        assert again[name] == content, name


def test_replanning_at_another_keep_does_not_calibrate_again(
    finished: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, model)
    directory = ["--run", str(tmp_path / "run")]
    assert main(["run", str(recipe), "--until", "plan", *directory]) == 0
    before = (tmp_path / "run" / "importance" / "stage.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["plan", str(recipe), "--set", "plan.keep=0.25", *directory]) == 0
    assert (tmp_path / "run" / "importance" / "stage.json").stat().st_mtime_ns == before
    shown = capsys.readouterr().out
    assert "settings.keep 0.5 → 0.25" in shown
    assert "25.0% of all rows kept" in shown


@pytest.mark.parametrize(
    ("quantize", "product", "target"), [(None, "after", 600_000), ({}, "quantized", 330_000)]
)
def test_a_byte_budget_is_met_and_nearly_spent(
    model: Path, tmp_path: Path, quantize: dict[str, str] | None, product: str, target: int
) -> None:
    recipe = write_recipe(tmp_path, model, plan={"target_bytes": target}, quantize=quantize)
    assert main(["run", str(recipe), "--until", "plan", "--run", str(tmp_path / "run")]) == 0
    plan = Plan.load(tmp_path / "run" / "plan")
    size = getattr(plan.export_bytes["float32"], product).total_bytes
    assert target - 3 * 64 * 4 < size <= target


@pytest.mark.parametrize("stage", STEPS[:-1])
def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(
    finished: Path, model: Path, tmp_path: Path, stage: str
) -> None:
    recipe = write_recipe(tmp_path, model, **SECTIONS)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "moe_export", "run", str(recipe), "--run", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # The folder exists once the stage begins, but it has no completion mark yet.
    while not (run / stage).exists() and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "report" / "stage.json").exists()
    assert main(["run", str(recipe), "--run", str(run)]) == 0
    assert artifacts(run) == artifacts(finished)


def test_an_interrupt_ends_with_its_own_code_and_a_resumable_run(
    model: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, model)
    run = tmp_path / "run"
    command = [sys.executable, "-m", "moe_export", "run", str(recipe), "--run", str(run)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (run / "importance").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("moe-export: interrupted; finished stages are kept")
    assert (run / "calibrate" / "stage.json").exists()


def test_a_failed_gate_writes_the_report_and_ends_with_its_own_code(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, model)
    gate = "validate.gates.max_logit_error=1.0e-12"
    arguments = ["run", str(recipe), "--run", str(tmp_path / "run"), "--set", gate]
    assert main(arguments) == 5
    assert "max_logit_error on cpu is" in capsys.readouterr().err
    assert (tmp_path / "run" / "report" / "report.html").exists()
    validation = json.loads((tmp_path / "run" / "validate" / "validation.json").read_text())
    assert validation["providers"]["cpu"]["parity"]["pruned"]["first_bad_layer"] is not None
    assert main(arguments) == 5, "a second run of finished stages must fail too"


def test_generate_streams_the_same_text_twice(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for _ in range(2):
        arguments = ["generate", str(finished), "--prompt", "12+3=", "--new-tokens", "5"]
        assert main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("12+3=")


def test_compare_puts_runs_side_by_side(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, data = tmp_path / "c.html", tmp_path / "c.json"
    arguments = ["compare", str(finished), str(finished), "--html", str(page), "--json", str(data)]
    assert main(arguments) == 0
    assert "exact" in capsys.readouterr().out
    assert json.loads(data.read_text())
    assert page.read_text().startswith("<!doctype html>")


def test_dry_run_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, model, **SECTIONS)
    assert main(["run", str(recipe), "--run", str(tmp_path / "run"), "--dry-run"]) == 0
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in STEPS)


def test_doctor_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "onnxruntime" in shown
    assert "provider cpu     available" in shown
    assert "install moe-export[gpu]" in shown, "brackets are text, not markup"
