from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import moe_export
from moe_export.cli import main
from moe_export.errors import ArtifactError, CheckpointError, GateError, RecipeError
from moe_export.recipe import CalibrateSettings
from moe_export.recipe.load import load_recipe, parse_recipe
from moe_export.runner.run import State
from moe_export.runner.steps import Step
from moe_export.scores import SCORES, DataScore
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import recipe, write_recipe


class Notes(moe_export.Watcher):
    """A record of what a run reports."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, bool]] = []

    def on_step(self, state: State, seconds: float | None) -> None:
        self.steps.append((state.step.folder, seconds is None))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> moe_export.RunResult:
    """A whole run, made from a mapping."""
    return moe_export.run(recipe(model), tmp_path_factory.mktemp("finished") / "run")


def test_a_run_gives_its_report_its_plan_and_its_models(finished: moe_export.RunResult) -> None:
    assert finished.report == finished.directory / "report" / "report.html"
    assert list(finished.exports) == ["baseline", "pruned", "quantized"]
    assert all((folder / "model.onnx").exists() for folder in finished.exports.values())
    assert finished.plan.kept == 0.5
    assert finished.comparison is None


def test_a_mapping_a_file_and_a_recipe_are_one_recipe(model: Path, tmp_path: Path) -> None:
    mapping = recipe(model)
    read = load_recipe(write_recipe(tmp_path, model))
    assert moe_export.read_recipe(mapping) == read
    assert moe_export.read_recipe(read) == read
    assert moe_export.read_recipe(str(tmp_path / "recipe.yaml")) == read
    changed = moe_export.read_recipe(read, ["plan.keep=0.25"])
    assert changed.plan is not None
    assert changed.plan.keep == 0.25
    parse_recipe(mapping, ("plan.keep=0.25",))
    assert mapping["plan"] == recipe(model)["plan"], "the caller's mapping is left as it is"


def test_a_wrong_mapping_is_refused_by_key(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^recipe: unknown key 'plan.kep'; the nearest"):
        moe_export.run(recipe(model, plan={"kep": 0.5}), tmp_path / "run")
    with pytest.raises(RecipeError, match="give a directory"):
        moe_export.run(recipe(model))
    assert not (tmp_path / "run").exists()


def test_a_second_run_is_fresh_until_a_stage_is_asked_for_anew(
    finished: moe_export.RunResult, model: Path
) -> None:
    notes = Notes()
    moe_export.run(recipe(model), finished.directory, until="plan", progress=notes)
    assert notes.steps == [("calibrate", False), ("importance", False), ("plan", False)]
    notes = Notes()
    moe_export.run(recipe(model), finished.directory, first="plan", until="plan", progress=notes)
    assert notes.steps[2:] == [("plan", True), ("plan", False)]


def test_planning_again_reuses_importance(model: Path, tmp_path: Path) -> None:
    assert moe_export.plan(recipe(model), tmp_path / "run").kept == 0.5
    notes = Notes()
    overrides = ["plan.keep=0.25"]
    again = moe_export.plan(recipe(model), tmp_path / "run", overrides, progress=notes)
    assert again.kept == 0.25
    assert notes.steps == [
        ("calibrate", False),
        ("importance", False),
        ("plan", True),
        ("plan", False),
    ]


def test_a_missed_gate_raises_and_leaves_the_results(
    finished: moe_export.RunResult, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.directory, tmp_path / "run")
    gate = ["validate.gates.max_logit_error=1.0e-12"]
    with pytest.raises(GateError, match="max_logit_error on cpu is"):
        moe_export.run(recipe(model), tmp_path / "run", overrides=gate)
    assert moe_export.RunResult(tmp_path / "run").report is not None
    finished.require_gates()


def test_a_model_loads_from_its_run_its_export_and_its_own_folder(
    finished: moe_export.RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    export = finished.directory / "export"
    ids = [5, 6, 7, 8]
    models = [
        moe_export.load(folder)
        for folder in (finished.directory, str(export), export / "quantized")
    ]
    assert [model.directory for model in models] == [export / "quantized"] * 3
    logits = [model.logits(ids) for model in models]
    assert logits[0].shape == (4, models[0].session.get_outputs()[0].shape[-1])
    assert logits[0].dtype == np.float32
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    baseline = moe_export.load(finished.directory, variant="baseline")
    assert np.abs(baseline.logits(ids) - logits[0]).max() > 1e-4
    portable = moe_export.load(finished.directory, operator="portable")
    assert models[0].path.startswith("native library (")
    assert portable.path.startswith("portable function body")
    assert models[0].path in repr(models[0])


def test_generated_text_is_the_streamed_text_and_that_of_the_command(
    finished: moe_export.RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    text = moe_export.generate(finished.directory, "12+3=", 5, variant="pruned")
    pruned = moe_export.load(finished.directory, variant="pruned", cache="static")
    assert "".join(pruned.stream("12+3=", 5)) == text
    words = ["--prompt", "12+3=", "--new-tokens", "5", "--variant", "pruned"]
    assert main(["generate", str(finished.directory), *words]) == 0
    assert capsys.readouterr().out == f"12+3={text}\n"


@pytest.mark.parametrize(
    ("prompt", "new_tokens", "sentence"),
    [
        ("x" * 300, 1, "the prompt has 300 tokens, the context of the model is 128; shorten it"),
        ("x" * 100, 30, "100 tokens and 30 new ones .* 128; ask for at most 29 new tokens"),
        ("x", 100_000, "1 tokens and 100000 new ones .* ask for at most 128 new tokens"),
        ("a\udcff", 2, "the prompt is not UTF-8 text .at character 2.; encode it as UTF-8"),
        ("", 2, "there are no tokens to run; give a prompt with text"),
    ],
)
@pytest.mark.parametrize("cache", ["growing", "static"])
def test_a_prompt_that_cannot_be_continued_is_one_sentence(
    finished: moe_export.RunResult,
    capsys: pytest.CaptureFixture[str],
    prompt: str,
    new_tokens: int,
    sentence: str,
    cache: Literal["growing", "static"],
) -> None:
    model = moe_export.load(finished.directory, cache=cache)
    with pytest.raises(RecipeError, match=sentence):
        model.stream(prompt, new_tokens)
    words = ["--prompt", prompt, "--new-tokens", str(new_tokens), "--cache", cache]
    assert main(["generate", str(finished.directory), *words]) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_the_last_new_token_needs_no_place_in_the_context(finished: moe_export.RunResult) -> None:
    for cache in ("growing", "static"):
        model = moe_export.load(finished.directory, cache=cache)
        assert model.context == 128
        assert model.generate("x" * 120, 9)


def test_logits_beyond_the_context_and_tokens_beyond_the_vocabulary_are_refused(
    finished: moe_export.RunResult,
) -> None:
    model = moe_export.load(finished.directory)
    with pytest.raises(RecipeError, match="129 tokens, the context of the model is 128"):
        model.logits([1] * 129)
    with pytest.raises(RecipeError, match="no tokens"):
        model.logits([])
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot run the model on these tokens"):
        model.logits([10**6])


def test_absent_models_are_refused_by_name(finished: moe_export.RunResult, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no exported model; run the export stage"):
        moe_export.load(tmp_path)
    with pytest.raises(ArtifactError, match="choose another variant: baseline, pruned, quantized"):
        moe_export.load(finished.directory, variant="packed")
    with pytest.raises(ArtifactError, match="holds one model, and variant 'pruned' is asked for"):
        moe_export.load(finished.exports["quantized"], variant="pruned")


def test_compare_has_a_column_for_every_model(finished: moe_export.RunResult) -> None:
    compared = moe_export.compare([finished.directory])
    assert [column.variant for column in compared.columns] == list(finished.exports)


def test_status_predicts_nothing(
    finished: moe_export.RunResult,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from moe_export.runner import estimate

    def refuse(*arguments: object) -> None:
        raise AssertionError("estimate was called")

    monkeypatch.setattr(estimate, "estimate", refuse)
    path = write_recipe(tmp_path, model)
    assert main(["status", str(path), "--run", str(finished.directory)]) == 0
    assert capsys.readouterr().out.count("fresh") == 8


def test_predictions_are_made_once_and_when_a_stage_is_marked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_export.runner import estimate

    calls: list[bool] = []
    real = estimate.estimate

    def counted(*arguments: object) -> object:
        calls.append((tmp_path / "run" / "calibrate" / "calibration.safetensors").exists())
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(estimate, "estimate", counted)
    moe_export.run(recipe(model), tmp_path / "run", until="plan")
    assert calls == [True]


def test_a_model_of_no_family_is_refused_before_the_first_stage(
    model: Path, tmp_path: Path
) -> None:
    strange = Path(shutil.copytree(model, tmp_path / "model"))
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "qwen3_meo"}))
    notes = Notes()
    with pytest.raises(CheckpointError, match="the nearest is 'qwen3_moe'"):
        moe_export.run(recipe(strange), tmp_path / "run", progress=notes)
    assert notes.steps == []


def test_a_name_is_registered_for_one_score() -> None:
    score = next(iter(SCORES.values()))
    moe_export.register_score(score)
    other = DataScore(score.name, "nats", "a test", len, None, ())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="is registered already"):
        moe_export.register_score(other)
    assert SCORES[score.name] is score


def test_the_silent_watcher_takes_every_report() -> None:
    step = Step("plan", "plan", CalibrateSettings.model_construct(), {})
    moe_export.Watcher().progress_of(step)(0, 1, "layer 0")


def test_every_public_name_is_there_and_no_other() -> None:
    for name in moe_export.__all__:
        assert getattr(moe_export, name) is not None
        assert name in dir(moe_export)
    with pytest.raises(AttributeError, match="has no attribute 'prune_everything'"):
        _ = moe_export.prune_everything  # type: ignore[attr-defined]


def test_importing_the_package_leaves_the_api_for_later() -> None:
    code = "import sys, moe_export; print('moe_export.api' in sys.modules); moe_export.run; "
    code += "print('moe_export.api' in sys.modules, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True", "False"]
