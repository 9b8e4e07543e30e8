from __future__ import annotations

import importlib.util

import pytest

from moe_export.artifacts.evaluation import EvaluatedModel, HarnessScore
from moe_export.errors import DependencyError
from moe_export.evaluation.fall import check_falls
from moe_export.evaluation.harness import run as harness
from moe_export.recipe import EvalSettings


def model(name: str, /, **values: float) -> EvaluatedModel:
    """Scores of a model: `acc` is better if greater, `ppl` if less."""
    scores = tuple(
        HarnessScore(
            task="task" if metric != "other" else "other",
            metric=metric,
            value=value,
            stderr=None,
            higher_is_better=metric != "ppl",
            items=10,
            shots=0,
        )
        for metric, value in values.items()
    )
    return EvaluatedModel(model=name, path="torch, float32", scores=scores)


def test_the_worst_metric_of_the_worst_model_counts() -> None:
    models = [
        model("source", acc=0.8, ppl=10.0),
        model("pruned", acc=0.6, ppl=11.0),
        model("quantized", acc=0.7, ppl=14.0),
    ]
    (gate,) = check_falls(0.3, ["task"], models, "cpu")
    assert gate.name == "eval.task"
    assert gate.value == pytest.approx(0.4)
    assert not gate.passed
    assert gate.detail == "task falls most by ppl of quantized (torch, float32)"
    (gate,) = check_falls(0.4, ["task"], models, "cpu")
    assert gate.passed


def test_a_task_whose_fall_cannot_be_computed_fails_with_the_reason() -> None:
    pruned = model("pruned", acc=0.5)
    for models, reason in (
        ([pruned], "the unpruned model was not evaluated"),
        ([model("baseline", acc=0.5)], "no pruned model was evaluated"),
        ([model("source", acc=0.0), pruned], "scores 0"),
    ):
        (gate,) = check_falls(1.0, ["task"], models, "cpu")
        assert not gate.passed
        assert gate.value is None
        assert reason in (gate.detail or "")


def test_without_a_limit_there_is_no_gate_and_a_tag_has_one_for_each_task() -> None:
    models = [model("source", acc=0.5, other=0.5), model("pruned", acc=0.5, other=0.5)]
    assert check_falls(None, ["task"], models, "cpu") == ()
    gates = check_falls(0.0, ["a tag of both"], models, "cpu")
    assert [gate.name for gate in gates] == ["eval.task", "eval.other"]
    assert all(gate.passed for gate in gates)


def test_an_absent_package_is_named_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert importlib.util.find_spec("json") is not None
    monkeypatch.setattr(harness, "PACKAGES", ("json", "no_such_package"))
    with pytest.raises(DependencyError, match=r"no-such-package.*pip install 'moe-export\[eval\]'"):
        harness.require_harness(EvalSettings(tasks=("gsm8k",)))
