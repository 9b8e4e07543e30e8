"""Tasks of lm-eval on every model of a run; needs the extra `eval`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

import moe_export
from moe_export.artifacts.evaluation import EvaluatedModel, Evaluation
from moe_export.errors import ArtifactError, RecipeError
from tests.helpers import small_runs
from tests.helpers.harness_tasks import write_tasks

tasks = pytest.importorskip(
    "lm_eval.tasks", reason="lm-eval is not installed; it is in the extra eval"
)
# The packages of lm-eval warn of each other.
pytestmark = pytest.mark.filterwarnings("default")

ITEMS = 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, pruned by the size of its weights, before eval."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = small_runs.recipe(
        Path("demo"),
        importance={"scores": ["magnitude"]},
        plan={"keep": 0.75, "score": "magnitude"},
    )
    # The gate of the rounding of activations is not about tasks.
    recipe["validate"]["gates"] = {"max_quantized_kl_nats": 1.0, "eval": 10.0}
    recipe["eval"] = {"tasks": ["sums_answered"]}
    moe_export.run(recipe, folder / "run", until="validate")
    return folder


@pytest.fixture(scope="module")
def evaluated(finished: Path) -> Evaluation:
    names = write_tasks(finished / "tasks", ITEMS)
    return moe_export.evaluate(
        finished / "run",
        names,
        include_path=str(finished / "tasks"),
        operators=["native", "portable"],
        batch_size=5,
    )


def named(evaluation: Evaluation, model: str) -> list[EvaluatedModel]:
    found = [each for each in evaluation.models if each.model == model]
    assert found
    return found


def values(model: EvaluatedModel) -> dict[str, float]:
    return {score.task: score.value for score in model.scores}


@pytest.mark.parametrize(
    ("in_torch", "exported"), [("source", "baseline"), ("checkpoint", "pruned")]
)
def test_torch_and_both_bodies_in_onnx_runtime_score_alike(
    evaluated: Evaluation, in_torch: str, exported: str
) -> None:
    (reference,) = named(evaluated, in_torch)
    native, portable = named(evaluated, exported)
    assert "native library" in native.path
    assert "portable" in portable.path
    for model in (native, portable):
        assert values(model) == pytest.approx(values(reference), rel=1e-4)
        for task in ("sums_answered", "facts_chosen"):
            assert values(model)[task] == values(reference)[task]


def test_the_unpruned_model_solves_what_it_was_trained_for(evaluated: Evaluation) -> None:
    scores = {score.task: score for score in named(evaluated, "source")[0].scores}
    assert scores["sums_answered"].value == 1.0
    assert scores["facts_chosen"].value >= 0.9
    assert scores["facts_chosen"].items == ITEMS
    assert scores["facts_chosen"].stderr is not None
    assert scores["facts_read"].higher_is_better is False


def test_the_report_shows_every_model_and_the_gate(finished: Path, evaluated: Evaluation) -> None:
    assert {gate.name for gate in evaluated.gates} == {
        "eval.sums_answered",
        "eval.facts_chosen",
        "eval.facts_read",
    }
    assert all(gate.passed for gate in evaluated.gates)
    for name in ("report.md", "report.html"):
        text = (finished / "run" / "report" / name).read_text()
        assert "source (torch, float32)" in text
        assert "fall of facts_chosen from the unpruned model" in text


def test_an_unknown_task_and_an_unfinished_run_are_named(
    finished: Path, evaluated: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished / "run", run)
    # Reading all of lm-eval's own tasks takes ten seconds.
    without_defaults = partial(tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", without_defaults)
    with pytest.raises(RecipeError, match=r"has no task 'facts_chose'.*facts_chosen"):
        moe_export.evaluate(run, ["facts_chose"], include_path=str(finished / "tasks"))
    (run / "export" / "stage.json").unlink()
    with pytest.raises(ArtifactError, match=r"export.*run the recipe again"):
        moe_export.evaluate(run)
