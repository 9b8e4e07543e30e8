"""The Python API, which the command line is built on; `import moe_export` offers all of it.

>>> import moe_export
>>> moe_export.run("recipes/demo_50pct.yaml", "runs/demo").report  # doctest: +SKIP
PosixPath('runs/demo/report/report.html')
>>> moe_export.generate("runs/demo", "12+30=", new_tokens=2)  # doctest: +SKIP
'42'
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from moe_export.artifacts.comparison import Comparison
from moe_export.artifacts.evaluation import Evaluation
from moe_export.artifacts.plan import Plan
from moe_export.errors import RecipeError
from moe_export.ort.model import Model, exported_model
from moe_export.recipe import Recipe, default_cache
from moe_export.recipe.load import load_recipe, parse_recipe
from moe_export.recipe.validate import Cache, Operator, Provider
from moe_export.runner.execution import execute
from moe_export.runner.result import RunResult
from moe_export.runner.steps import between, steps_of
from moe_export.runner.watcher import Watcher
from moe_export.scores import register_score
from moe_export.system.workers import is_first

RecipeLike: TypeAlias = str | Path | Mapping[str, Any] | Recipe
"""A recipe: the path of its file, its content as a mapping, or the recipe itself."""


def run(
    recipe: RecipeLike,
    directory: str | Path | None = None,
    *,
    first: str | None = None,
    until: str | None = None,
    overrides: Iterable[str] = (),
    threads: int | None = None,
    progress: Watcher | None = None,
) -> RunResult:
    """Runs a recipe; stages whose results are still valid are skipped.

    Args:
        recipe: path of a recipe file, a mapping with its sections, or a `Recipe`.
        directory: run directory; `runs/` and the file's name if None.
        first: stage from which on everything runs anew.
        until: last stage to run; all if None.
        overrides: changes of the recipe's keys, such as `plan.keep=0.4`.
        threads: number of torch's threads in this process from now on; all cores if None.
        progress: observer that is told of every step; silent if None.

    Returns:
        Paths of the report and the exported models, and the plan.

    Raises:
        RecipeError: the recipe or an override is wrong, or has no such stage.
        GateError: a limit of the recipe was not met; everything is written, and
            `RunResult(directory)` gives access to it.
        MoeExportError: an error of a stage; finished stages are kept, run again to resume.
    """
    read = read_recipe(recipe, overrides)
    steps, forced = between(steps_of(read), first, until)
    result = RunResult(run_directory(recipe, directory))
    execute(
        read,
        steps,
        result.directory,
        forced=frozenset(forced),
        threads=threads,
        watcher=progress,
    )
    if is_first() and any(step.stage == "report" for step in steps):
        result.require_gates()
    return result


def plan(
    recipe: RecipeLike,
    directory: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    threads: int | None = None,
    progress: Watcher | None = None,
) -> Plan:
    """Runs a recipe up to its plan; calibration and importance are reused if they are valid.

    Args:
        recipe: path of a recipe file, a mapping with its sections, or a `Recipe`.
        directory: run directory; `runs/` and the file's name if None.
        overrides: changes of the recipe's keys, such as `plan.keep=0.4`.
        threads: number of torch's threads in this process from now on; all cores if None.
        progress: observer that is told of every step; silent if None.

    Returns:
        The plan: a width for every expert, and predicted bytes.

    Raises:
        RecipeError: the recipe or an override is wrong.
        PlanError: the budget cannot be met.
        MoeExportError: an error of another stage.
    """
    made = run(
        recipe, directory, until="plan", overrides=overrides, threads=threads, progress=progress
    )
    return made.plan


def evaluate(
    directory: str | Path,
    tasks: Sequence[str] | None = None,
    *,
    progress: Watcher | None = None,
    **settings: Any,
) -> Evaluation:
    """Runs tasks of lm-eval on the models of a finished run, and writes its report again.

    Args:
        directory: run directory whose models are exported.
        tasks: names of tasks; those of the recipe's `eval` section if None.
        progress: observer that is told of every step; silent if None.
        settings: further keys of the section `eval`, such as `limit`; those of the recipe stay.

    Returns:
        Scores of every model.

    Raises:
        RecipeError: there are no tasks, or one is unknown; or a key or value is wrong.
        DependencyError: a package of the extra `eval`, or a data set, is absent.
        ArtifactError: a stage before has not finished, or its result is no longer valid.
        GateError: `validate.gates.eval` was not met; the report is written.
    """
    from moe_export.runner.evaluation import evaluate_run  # noqa: PLC0415 - only here

    given = {key: value for key, value in settings.items() if value is not None}
    given |= {"tasks": list(tasks)} if tasks else {}
    return evaluate_run(Path(directory), given, progress)


def load(
    folder: str | Path,
    *,
    provider: Provider = "cpu",
    variant: str | None = None,
    operator: Operator = "native",
    cache: Cache | None = None,
    threads: int = 0,
) -> Model:
    """Loads an exported model into ONNX Runtime.

    Args:
        folder: a run directory, an export directory, or the folder of one exported model.
        provider: execution provider; the model runs there or not at all.
        variant: `baseline`, `pruned` or `quantized`; the quantized model, else the pruned one, if
            None.
        operator: `native` runs the experts in the native library, `portable` as standard operators.
        cache: form of the KV cache; the fastest that provider and operator allow if None.
        threads: threads within an operator; 0 lets ONNX Runtime choose.

    Raises:
        ArtifactError: there is no such model, or it does not load.
        RecipeError: the cache does not suit provider and operator.
        DependencyError: ONNX Runtime, the provider or the native library is absent.
    """
    directory = exported_model(Path(folder), variant)
    return Model(directory, provider, operator, cache or default_cache(provider, operator), threads)


def generate(
    folder: str | Path,
    prompt: str,
    new_tokens: int = 64,
    *,
    provider: Provider = "cpu",
    variant: str | None = None,
) -> str:
    """The greedy continuation of a prompt by an exported model.

    It loads the model for one prompt; use `load` for several.

    Args:
        folder: a run directory, an export directory, or the folder of one exported model.
        prompt: text to continue.
        new_tokens: greatest number of new tokens.
        provider: execution provider.
        variant: name of the variant; the product if None.

    Returns:
        The new text, without the prompt.

    Raises:
        ArtifactError: there is no such model, or it does not load.
        DependencyError: ONNX Runtime, the provider or the native library is absent.
    """
    return load(folder, provider=provider, variant=variant).generate(prompt, new_tokens)


def compare(runs: Sequence[str | Path]) -> Comparison:
    """Compares finished runs: memory, accuracy and speed of every exported model.

    Args:
        runs: run directories with a report, at least one.

    Returns:
        One column per exported model.

    Raises:
        ArtifactError: a directory holds no report.
    """
    from moe_export.reporting.compare import compare as columns_of  # noqa: PLC0415 - tables

    return columns_of([Path(run) for run in runs])


def read_recipe(recipe: RecipeLike, overrides: Iterable[str] = ()) -> Recipe:
    """Reads and checks a recipe.

    Args:
        recipe: path of a recipe file, a mapping with its sections, or a `Recipe`.
        overrides: changes of its keys, such as `plan.keep=0.4`.

    Raises:
        RecipeError: the file cannot be read, or a key or value is wrong.
    """
    if isinstance(recipe, str | Path):
        return load_recipe(Path(recipe), tuple(overrides))
    content = recipe.plain() if isinstance(recipe, Recipe) else recipe
    return parse_recipe(content, tuple(overrides))


def run_directory(recipe: RecipeLike, directory: str | Path | None, suffix: str = "") -> Path:
    """The directory given, or else `runs/` and the name of the recipe's file with a suffix.

    Raises:
        RecipeError: no directory is given, and the recipe is no file.
    """
    if directory is not None:
        return Path(directory)
    if isinstance(recipe, str | Path):
        return Path("runs") / f"{Path(recipe).stem}{suffix}"
    raise RecipeError("a recipe that is not a file has no name for its run; give a directory")


__all__ = [
    "Model",
    "Plan",
    "Recipe",
    "RunResult",
    "Watcher",
    "compare",
    "evaluate",
    "generate",
    "load",
    "plan",
    "read_recipe",
    "register_score",
    "run",
]
