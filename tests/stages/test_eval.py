"""Tasks of lm-eval on every model of a run; needs the extra `eval`."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import moe_export
from moe_export.artifacts.evaluation import EvaluatedModel, Evaluation
from moe_export.errors import ArtifactError, RecipeError
from moe_export.stages.export import export_model
from moe_export.testing.families import GLM4_MOE_LITE, QWEN3_5_MOE_TEXT, FamilyRow
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from tests.helpers import small_runs
from tests.helpers.harness_tasks import write_tasks

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed; it is in the extra eval")
tasks = pytest.importorskip("lm_eval.tasks")
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


@pytest.mark.parametrize("row", [QWEN3_5_MOE_TEXT, GLM4_MOE_LITE], ids=lambda row: row.model_type)
def test_states_and_latent_vectors_answer_batches_as_torch(row: FamilyRow, tmp_path: Path) -> None:
    from moe_export.evaluation.harness.models import OrtHarness, TorchHarness

    names = write_tasks(tmp_path / "tasks", 4)
    source = tiny_checkpoint(tmp_path / "source", base=row.config)
    pruned = pruned_checkpoint(source, tmp_path / "pruned", row.widths(24, 0, 7, 16))
    export_model(pruned, tmp_path / "out", "float32")
    told: list[int] = []
    in_torch = TorchHarness(pruned, "float32", 3, None, told.append)
    exported = [
        OrtHarness(tmp_path / "out", "cpu", operator, 3, None, told.append)
        for operator in ("native", "portable")
    ]
    manager = tasks.TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    expected, *results = (
        lm_eval.simple_evaluate(model, tasks=list(names), task_manager=manager)
        for model in (in_torch, *exported)
    )
    for result in results:
        for task in ("sums_answered", "facts_chosen"):
            assert responses(result, task) == pytest.approx(responses(expected, task), abs=1e-3)


def responses(result: Any, task: str) -> list[Any]:
    """Answers as texts, or log-likelihoods of all choices."""
    found = [first for sample in result["samples"][task] for first in sample["filtered_resps"]]
    return [one if isinstance(one, str) else one[0] for one in found]


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
