"""The gate `validate.gates.eval`: how far a task of lm-eval falls by pruning and quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_export.artifacts.evaluation import EvaluatedModel, HarnessScore
from moe_export.artifacts.validation import Gate
from moe_export.recipe.evaluate import TORCH_MODELS
from moe_export.variants import BASELINE

SOURCE = TORCH_MODELS[0]

Scores = Mapping[tuple[str, str], HarnessScore]
"""Scores of a model by task and metric."""


def shown(asked: Sequence[str], scores: Sequence[HarnessScore]) -> list[HarnessScore]:
    """Scores of what was asked for; of a tag without a score of its own, those of all tasks."""
    own = [score for score in scores if score.task in asked]
    return own if {score.task for score in own} == set(asked) else list(scores)


def fall_of(score: HarnessScore, unpruned: HarnessScore) -> float | None:
    """Worsening of a score as a share of the unpruned model's value.

    Returns:
        A share, negative if the score is better; None if the direction is unknown or the unpruned
        model's value is zero.
    """
    if score.higher_is_better is None or unpruned.value == 0:
        return None
    change = (score.value - unpruned.value) / abs(unpruned.value)
    return -change if score.higher_is_better else change


def check_falls(
    limit: float | None, asked: Sequence[str], models: Sequence[EvaluatedModel], provider: str
) -> tuple[Gate, ...]:
    """Holds the tasks of all other models against the unpruned one.

    Args:
        limit: largest fall, a share of the unpruned model's value; None for no gate.
        asked: tasks that were asked for.
        models: scores of every model.
        provider: execution provider of the exported models.

    Returns:
        One gate per task, with the worst metric of the worst model. A task whose fall cannot be
        computed fails.
    """
    if limit is None:
        return ()
    unpruned = unpruned_model(models)
    if unpruned is None:
        reason = "the unpruned model was not evaluated; add source or baseline to eval.models"
        return tuple(_failed(task, provider, limit, reason) for task in asked)
    reference = {(s.task, s.metric): s for s in unpruned.scores}
    others = [model for model in models if model.model not in (SOURCE, BASELINE)]
    tasks = dict.fromkeys(score.task for score in shown(asked, unpruned.scores))
    return tuple(_gate(task, limit, provider, reference, others) for task in tasks)


def unpruned_model(models: Sequence[EvaluatedModel]) -> EvaluatedModel | None:
    """The model that stands for the unpruned one; None if none does."""
    return next((model for model in models if model.model in (SOURCE, BASELINE)), None)


def _gate(
    task: str, limit: float, provider: str, reference: Scores, models: Sequence[EvaluatedModel]
) -> Gate:
    falls = [
        (fall, f"{score.metric} of {model.model} ({model.path})")
        for model in models
        for score in model.scores
        if score.task == task
        if (fall := fall_of(score, reference[task, score.metric])) is not None
    ]
    if not falls:
        reason = "no pruned model was evaluated" if not models else "the unpruned model scores 0"
        return _failed(task, provider, limit, reason)
    worst, where = max(falls)
    passed = worst <= limit
    return Gate(
        name=f"eval.{task}",
        provider=provider,
        limit=limit,
        value=worst,
        passed=passed,
        detail=None if passed else f"{task} falls most by {where}",
    )


def _failed(task: str, provider: str, limit: float, reason: str) -> Gate:
    return Gate(
        name=f"eval.{task}", provider=provider, limit=limit, value=None, passed=False, detail=reason
    )
