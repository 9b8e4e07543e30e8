"""Runs of recipes that pages are made from, and scores of their models in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import moe_export
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.evaluation.tally import mean_exact_match
from moe_export.recipe import Recipe
from moe_export.runner.source_model import locate


def carried_out(recipe: Recipe, directory: Path, last: str) -> Path:
    """Runs a recipe up to a stage.

    Args:
        recipe: The recipe.
        directory: Run directory; stages that are fresh are skipped.
        last: Name of the last stage.

    Returns:
        Folder of the source model.
    """
    moe_export.run(recipe, directory, until=last)
    return locate(recipe.model)


def scored_tasks(recipe: Recipe, model: Path, items: int) -> dict[str, ScoredTask]:
    """Held-out documents of each of a recipe's tasks.

    Args:
        recipe: Recipe whose `validate.tasks` are drawn.
        model: Folder of the model whose tokenizer is used.
        items: Documents of each task.
    """
    return {
        name: ScoredTask(
            has_answers(task), draw(task, model, items, 512, TEST_SEED, "test").sequences
        )
        for name, task in task_names(recipe.validate_.tasks).items()
    }


def scores_of(model: Any, tasks: dict[str, ScoredTask], reference: Any) -> dict[str, Any]:
    """Exact match on the tasks with answers, and loss and divergence on text.

    Args:
        model: Model in torch.
        tasks: Documents to score.
        reference: Model to diverge from; None for no divergence.
    """
    scores = score_tasks(model, tasks, reference)
    return {
        "mean_exact_match": mean_exact_match(scores),
        "text_loss_nats": scores["text"].loss_nats,
        "text_kl_nats": scores["text"].kl_nats,
        "tasks": {name: score.exact_match for name, score in scores.items()},
    }
