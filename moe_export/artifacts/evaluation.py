"""`eval.json`: scores of lm-eval's tasks for the checkpoints and the exported models."""

from __future__ import annotations

from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.validation import Gate


class HarnessScore(Record):
    """One metric of one task, as lm-eval computed it.

    Attributes:
        task: name of the task or group.
        metric: name of the metric with its filter, such as `acc` or `exact_match,strict-match`.
        value: value of the metric.
        stderr: standard error of the value; None if lm-eval gives none.
        higher_is_better: True if a greater value is better; None if lm-eval does not say.
        items: number of documents; None for a group.
        shots: number of examples before each question; None if lm-eval does not say.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None
    items: int | None
    shots: int | None


class EvaluatedModel(Record):
    """Scores of one model.

    Attributes:
        model: `source` or `checkpoint` (the pruned one) in torch, or the exported variant.
        path: runtime and implementation of the experts, in words.
        scores: scores of the tasks that were asked for, and of the tasks of groups.
    """

    model: str
    path: str
    scores: tuple[HarnessScore, ...]


class Evaluation(JsonArtifact):
    """Scores of every evaluated model, and the gates about them.

    Attributes:
        lm_eval: version of lm-eval.
        tasks: tasks and groups that were asked for.
        limit: most documents of a task; None for all.
        models: scores by model, the unpruned ones first.
        gates: outcome of `validate.gates.eval`, one per task; empty without it.
    """

    FILE: ClassVar[str] = "eval.json"

    lm_eval: str
    tasks: tuple[str, ...]
    limit: int | None
    models: tuple[EvaluatedModel, ...]
    gates: tuple[Gate, ...]
