"""Run of a recipe in a directory, and its execution in one or several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from moe_export.artifacts.stage_mark import PredictedCost
from moe_export.checkpoint import read_config
from moe_export.errors import DependencyError
from moe_export.evaluation.harness.run import require_harness
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats
from moe_export.op.library import library_files
from moe_export.ort.session import require_execution
from moe_export.recipe import EvalSettings, Recipe, TuneSettings, ValidateSettings, settings_of
from moe_export.runner.fingerprints import fingerprints
from moe_export.runner.layer_log import LayerLog
from moe_export.runner.run import Run, serve
from moe_export.runner.source_model import inspect, locate
from moe_export.runner.steps import Step
from moe_export.runner.tasks import require_tasks
from moe_export.runner.watcher import Watcher
from moe_export.system import host
from moe_export.system.machine import physical_cores
from moe_export.system.workers import ALONE, Workers, joined
from moe_export.tuning.methods import check_method
from moe_export.tuning.needs import require_memory


def open_run(
    recipe: Recipe,
    steps: list[Step],
    directory: Path,
    workers: Workers = ALONE,
    threads: int | None = None,
) -> Run:
    """A run of some steps of a recipe; nothing is written yet.

    Args:
        recipe: source of the model and of the predictions.
        steps: steps of the run, in order.
        directory: run directory; it need not exist.
        workers: this process among those that share stages.
        threads: number of torch's threads; that of this process if None.

    Raises:
        DependencyError: the system is not Linux.
        CheckpointError: the model is not there, incomplete or damaged.
        CalibrationError: a source file cannot be read.
    """
    if host.SYSTEM != "linux":
        raise DependencyError(
            f"a run reads memory and processors as Linux tells them, and this is {host.SYSTEM}; "
            "run the recipe on Linux and copy the exported folder here"
        )
    model = locate(recipe.model)
    inspect(model)
    outside = fingerprints(steps, model)
    return Run(
        directory,
        steps,
        model,
        outside,
        threads or threads_of_torch(),
        workers,
        predict=_predictions(recipe, model),
    )


def execute(
    recipe: Recipe,
    steps: list[Step],
    directory: Path,
    *,
    forced: frozenset[str] = frozenset(),
    threads: int | None = None,
    watcher: Watcher | None = None,
) -> None:
    """Runs the steps that are not fresh; under `torchrun`, together with the other processes.

    Args:
        recipe: the recipe of the steps.
        steps: steps of the run, in order.
        directory: run directory; created if absent.
        forced: folders of steps that run although they are fresh.
        threads: number of torch's threads in this process from now on; all cores if None.
        watcher: observer of the run; none if None.

    Raises:
        MoeExportError: an error of a stage; finished stages stay finished.
    """
    _configure_torch(threads)
    watcher = LayerLog(watcher or Watcher(), directory)
    with joined() as workers:
        if workers.rank > 0:
            serve(workers, settings_of)
            return
        run = open_run(recipe, steps, directory, workers)
        spec = _require_model(recipe, run.model)
        _require_stages(run, forced, spec)
        run.execute(recipe.plain(), set(forced), watcher.progress_of, watcher.on_step)


def _predictions(recipe: Recipe, model: Path) -> Callable[[], Mapping[str, PredictedCost]]:
    """Predictions by step folder, computed on the first call."""

    @cache
    def predict() -> Mapping[str, PredictedCost]:
        from moe_export.runner.estimate import estimate  # noqa: PLC0415 - loads the graph builder

        return {each.stage: each.cost() for each in estimate(recipe, model)}

    return predict


def _configure_torch(threads: int | None) -> None:
    # torch reads these when it is first loaded. Its threads spin while they wait otherwise; beside
    # other work that made importance ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Torch logs a lost connection with its C++ stack, as warning or error; ours is one sentence.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    threads = threads or threads_of_torch()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def threads_of_torch() -> int:
    """Number of threads that torch uses in this process unless it is told otherwise."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(named) if named.isdecimal() and 0 < int(named) <= 1024 else physical_cores()


def _require_model(recipe: Recipe, model: Path) -> ModelSpec:
    """Stops before the first stage if the model lacks what the recipe prunes or quantizes."""
    spec = spec_of(read_config(model))
    if recipe.export.web:
        from moe_export.graph.web import check_web  # noqa: PLC0415 - loads the graph builder

        check_web(spec)
    if recipe.export.library and recipe.export.platforms is not None:
        wheels = recipe.export.wheels
        library_files(recipe.export.platforms, None if wheels is None else Path(wheels))
    if recipe.plan is not None:
        # Refuses a shared expert that the model has not, and more experts per token than it has.
        Axis(spec, recipe.plan.prunes_shared_of(spec.has_shared_expert)).routed_to(
            recipe.plan.top_k
        )
    if recipe.quantize is not None:
        in_formats(spec, recipe.quantize.quantization("float"))  # refuses a table used twice
    return spec


def _require_stages(run: Run, forced: frozenset[str], spec: ModelSpec) -> None:
    """Stops before the first stage if the machine or the tasks lack what a later one needs."""
    for state in run.states():
        settings = state.step.settings
        if state.fresh and state.step.folder not in forced:
            continue
        if isinstance(settings, TuneSettings):
            check_method(replace(spec, top_k=settings.top_k or spec.top_k), settings)
        if isinstance(settings, TuneSettings) and settings.after is None:
            require_memory(spec, settings, host.physical_bytes())
        if isinstance(settings, ValidateSettings):
            require_execution(settings.providers, settings.operator)
        if isinstance(settings, EvalSettings):
            require_harness(settings)
        require_tasks(settings, run.model, spec.max_positions)
