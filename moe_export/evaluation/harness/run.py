"""Runs of lm-eval: its presence, its tasks, and the scores of one model."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_export.artifacts.evaluation import HarnessScore
from moe_export.errors import DependencyError, MoeExportError, RecipeError
from moe_export.recipe import EvalSettings

PACKAGES = ("lm_eval", "datasets", "accelerate")

LONGEST_REASON = 300
"""Most characters of an error of lm-eval within a sentence."""


def require_harness(settings: EvalSettings) -> None:
    """Checks that lm-eval is installed and knows the tasks; loads no data set.

    Raises:
        DependencyError: a package of the extra `eval` is absent.
        RecipeError: lm-eval does not know a task, or a folder of tasks is absent.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"eval: the package {missing[0].replace('_', '-')} is not installed; run pip install "
            "'moe-export[eval]', or leave the eval section out"
        )
    task_manager(settings)


def harness_version() -> str:
    """Version of the installed lm-eval."""
    return version("lm-eval")


def task_manager(settings: EvalSettings) -> Any:
    """The tasks of the settings' folder and, if one is not there, lm-eval's own.

    Raises:
        RecipeError: a task is unknown, or the folder is absent.
    """
    # lm-eval's bars would break ours; tqdm reads this when it is first loaded.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - an extra

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder = settings.include_path
    if folder is not None and not Path(folder).is_dir():
        raise RecipeError(f"eval.include_path: {folder} is no folder; give one with tasks in YAML")
    if folder is not None:
        own = TaskManager(include_path=folder, include_defaults=False)
        if not _unknown(own, settings.tasks):
            return own
    # Thousands of files are read here, which takes seconds.
    manager = TaskManager(include_path=folder)
    for task in _unknown(manager, settings.tasks):
        near = difflib.get_close_matches(task, manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else "`lm-eval ls tasks` lists them"
        raise RecipeError(
            f"eval.tasks: lm-eval {harness_version()} has no task {task!r}"
            f"{'' if folder is None else f', and {folder} has none'}; {hint}"
        )
    return manager


def _unknown(manager: Any, tasks: Sequence[str]) -> list[str]:
    return [task for task in tasks if not manager.match_tasks([task])]


def evaluate(model: Any, settings: EvalSettings, manager: Any) -> tuple[HarnessScore, ...]:
    """Runs the tasks on a model.

    Args:
        model: an adapter of `models`.
        settings: tasks, and limits of their documents.
        manager: the tasks that lm-eval knows.

    Returns:
        Every metric of every task and group, in lm-eval's order.

    Raises:
        DependencyError: a task or its data cannot be loaded.
    """
    from lm_eval import simple_evaluate  # noqa: PLC0415 - an extra

    try:
        results = simple_evaluate(
            model=model,
            tasks=list(settings.tasks),
            num_fewshot=settings.num_fewshot,
            batch_size=settings.batch_size,
            limit=settings.limit,
            log_samples=False,
            task_manager=manager,
        )
    except (MoeExportError, MemoryError):
        raise
    except Exception as error:  # data sets, hubs and tasks fail in many ways
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DependencyError(
            f"eval: lm-eval {harness_version()} cannot run {', '.join(settings.tasks)} "
            f"({reason[:LONGEST_REASON]}); check that their data sets are there or can be loaded"
        ) from error
    assert results is not None, "this is the only process"
    return tuple(_scores(results))


def _scores(results: dict[str, Any]) -> Iterator[HarnessScore]:
    for task, values in results["results"].items():
        better = results["higher_is_better"].get(task, {})
        items = results["n-samples"].get(task)
        for key, value in values.items():
            metric, _, chosen = key.partition(",")
            if metric.endswith("_stderr") or isinstance(value, str) or not chosen:
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            yield HarnessScore(
                task=task,
                metric=metric if chosen == "none" else key,
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, int | float) else None,
                higher_is_better=better.get(metric),
                items=items["effective"] if items else None,
                shots=results["n-shot"].get(task),
            )
