"""Tasks of lm-eval on a run that is finished up to its exported models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.evaluation import Evaluation
from moe_export.artifacts.run_info import ResolvedRecipe, RunInfo
from moe_export.artifacts.stage_mark import StageMark
from moe_export.errors import ArtifactError, RecipeError
from moe_export.evaluation.gates import raise_for_gates
from moe_export.recipe.load import parse_recipe
from moe_export.runner.execution import execute, open_run
from moe_export.runner.steps import Step, steps_of
from moe_export.runner.watcher import Watcher


def evaluate_run(
    directory: Path, settings: Mapping[str, Any], watcher: Watcher | None = None
) -> Evaluation:
    """Runs the stages eval and report of a run.

    Args:
        directory: run directory.
        settings: keys of the section `eval` that differ from those of the run's recipe.
        watcher: observer of the run; none if None.

    Raises:
        ArtifactError: the directory is no run, or a stage that eval needs is not finished.
        RecipeError: there are no tasks, or the settings are wrong.
        DependencyError: a package of the extra `eval`, or a data set, is absent.
        GateError: a task falls by more than `validate.gates.eval`; the report is written.
    """
    if not (directory / RunInfo.FILE).is_file():
        raise ArtifactError(f"{directory} is no run directory; give that of a finished run")
    content = ResolvedRecipe.load(directory).recipe
    section = (content.get("eval") or {}) | dict(settings)
    if "tasks" not in section:
        raise RecipeError(
            "there are no tasks to run; give --tasks, or a section eval in the recipe"
        )
    recipe = parse_recipe(content | {"eval": section}, ())
    steps = steps_of(recipe)
    threads = _threads(directory, steps)
    for state in open_run(recipe, steps, directory, threads=threads).states():
        if state.step.stage == "eval":
            break
        if not state.fresh:
            raise ArtifactError(
                f"{directory / state.step.folder}: the stage is not finished or no longer valid "
                f"({state.reason}); run the recipe again first"
            )
    execute(recipe, steps, directory, threads=threads, watcher=watcher)
    evaluation = Evaluation.load(directory / "eval")
    raise_for_gates(evaluation.gates)
    return evaluation


def _threads(directory: Path, steps: list[Step]) -> int | None:
    """Number of torch's threads of the finished stages; None if none depends on it."""
    folders = (directory / step.folder for step in steps)
    marks = (StageMark.load(folder) for folder in folders if (folder / StageMark.FILE).is_file())
    return next((mark.identity.threads for mark in marks if mark.identity.threads), None)
