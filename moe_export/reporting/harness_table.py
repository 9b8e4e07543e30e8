"""Table of lm-eval's scores: a row per task and metric, a column per model."""

from __future__ import annotations

from collections.abc import Sequence

from moe_export.artifacts.evaluation import EvaluatedModel, HarnessScore
from moe_export.evaluation.fall import shown
from moe_export.reporting.tables import Table
from moe_export.reporting.units import NONE, count, figures


def harness_table(tasks: Sequence[str], models: Sequence[EvaluatedModel]) -> Table:
    """Lists the scores of the tasks that were asked for, with their standard errors.

    Args:
        tasks: tasks and groups that were asked for.
        models: scores by model; there is at least one model.
    """
    by_model = [{(s.task, s.metric): s for s in model.scores} for model in models]
    rows = [
        [
            score.task,
            f"{score.metric}{_arrow(score)}",
            count(score.items),
            NONE if score.shots is None else str(score.shots),
            *(_value(scores.get((score.task, score.metric))) for scores in by_model),
        ]
        for score in shown(tasks, models[0].scores)
    ]
    heads = [f"{model.model} ({model.path})" for model in models]
    return Table(["task", "metric", "items", "shots", *heads], rows, words=2)


def _arrow(score: HarnessScore) -> str:
    """Direction in which a metric is better, as lm-eval's own tables show it."""
    return {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]


def _value(score: HarnessScore | None) -> str:
    if score is None:
        return NONE
    return figures(score.value) + ("" if score.stderr is None else f" ± {figures(score.stderr)}")
