"""Check of the documents that a run will score, before its first stage."""

from __future__ import annotations

from pathlib import Path

from moe_export.documents.sources import TEST_SEED, Drawn, draw, task_names
from moe_export.errors import CalibrationError, RecipeError
from moe_export.evaluation.prompts import greedy_prompts
from moe_export.recipe import BakeoffSettings, ValidateSettings


def require_tasks(settings: object, model: Path, context: int) -> None:
    """Stops if documents that a stage will score cannot be drawn, or do not fit into the context.

    Without this, a task with a wrong field would end a run after all its other stages.

    Args:
        settings: Settings of a stage; of validate and bakeoff, the tasks are drawn.
        model: Folder of the source model.
        context: Most tokens of a sequence that the model takes.

    Raises:
        CalibrationError: A task's source is unusable, or its documents are too long.
        RecipeError: The prompts or speed settings leave no room for new tokens.
    """
    if isinstance(settings, BakeoffSettings):
        _drawn(settings, settings.sequence_length, model, context)
    if not isinstance(settings, ValidateSettings):
        return
    tasks = _drawn(settings, settings.sequence_length, model, context)
    documents = [drawn.sequences for drawn in tasks]
    room = context - settings.greedy_tokens + 1
    if greedy_prompts(documents, 1, context) and not greedy_prompts(documents, 1, room):
        raise RecipeError(
            f"validate.greedy_tokens is {settings.greedy_tokens}, the context of the model is "
            f"{context}, and no prompt that is decoded greedily has {max(room, 0)} tokens or "
            "fewer; lower greedy_tokens"
        )
    speed = settings.speed
    if speed.prompt_tokens + speed.new_tokens > context:
        raise RecipeError(
            f"validate.speed has {speed.prompt_tokens} prompt_tokens and {speed.new_tokens} "
            f"new_tokens, the context of the model is {context}; lower them"
        )


def _drawn(
    settings: ValidateSettings | BakeoffSettings, length: int, model: Path, context: int
) -> list[Drawn]:
    """Draws the documents of every task."""
    tasks = []
    for name, task in task_names(settings.tasks).items():
        drawn = draw(task, model, task.items, length, TEST_SEED, "test")
        longest = max(len(sequence.tokens) for sequence in drawn.sequences)
        if longest > context:
            raise CalibrationError(
                f"task {name}: a document has {longest} tokens, the context of the model is "
                f"{context}; lower validate.sequence_length, or give shorter documents"
            )
        tasks.append(drawn)
    return tasks
