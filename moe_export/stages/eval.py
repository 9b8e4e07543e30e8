"""The eval stage: tasks of lm-eval on the checkpoints in torch and on the exported models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from moe_export.artifacts.evaluation import EvaluatedModel, Evaluation
from moe_export.errors import RecipeError
from moe_export.evaluation.fall import check_falls
from moe_export.evaluation.harness.run import (
    evaluate,
    harness_version,
    require_harness,
    task_manager,
)
from moe_export.ort.execution import execution_path
from moe_export.recipe import EvalSettings
from moe_export.recipe.evaluate import TORCH_MODELS
from moe_export.stages.job import Job
from moe_export.variants import exported


@dataclass(frozen=True)
class Candidate:
    """A model that can be evaluated.

    Attributes:
        model: name of the model in `eval.models`.
        path: runtime and implementation of the experts, in words.
        open: function that loads the model, given the function that is told of sequences.
    """

    model: str
    path: str
    open: Callable[..., Any]


def run(job: Job[EvalSettings]) -> None:
    """Writes `Evaluation`.

    Raises:
        DependencyError: lm-eval, a data set or the native library is absent.
        RecipeError: a task is unknown, or a model that the recipe names does not exist.
    """
    require_harness(job.settings)
    settings = job.settings
    manager = task_manager(settings)
    candidates = list(_candidates(job))
    models = []
    for number, candidate in enumerate(candidates):
        counted = _Count(partial(job.progress, number, len(candidates)), candidate)
        counted(0)
        model = candidate.open(settings.batch_size, settings.max_length, counted)
        scores = evaluate(model, settings, manager)
        models.append(EvaluatedModel(model=candidate.model, path=candidate.path, scores=scores))
        del model  # before the next one is loaded
    Evaluation(
        lm_eval=harness_version(),
        tasks=settings.tasks,
        limit=settings.limit,
        models=tuple(models),
        gates=check_falls(settings.max_fall, settings.tasks, models, settings.provider or "cpu"),
    ).save(job.out)
    job.progress(len(candidates), len(candidates), "done")


class _Count:
    """Number of sequences that have run on a model, shown as they run."""

    def __init__(self, show: Callable[[str], None], candidate: Candidate) -> None:
        self._show, self._candidate, self._sequences = show, candidate, 0

    def __call__(self, more: int) -> None:
        self._sequences += more
        what = f"{self._candidate.model}, {self._candidate.path}"
        self._show(f"{what}: {self._sequences} sequences")


def _candidates(job: Job[EvalSettings]) -> Iterator[Candidate]:
    """Yields the models of the settings: the unpruned ones first, in torch before ONNX Runtime."""
    existing = [*_torch_models(job), *_exported_models(job)]
    known = list(dict.fromkeys(each.model for each in existing))
    wanted = job.settings.models or known
    for name in wanted:
        if name not in known:
            raise RecipeError(
                f"eval.models: the run has no model {name!r}; it has {', '.join(known)}"
            )
    yield from (each for each in existing if each.model in wanted)


def _torch_models(job: Job[EvalSettings]) -> Iterator[Candidate]:
    from moe_export.evaluation.harness.models import TorchHarness  # noqa: PLC0415 - an extra

    folders = (job.model, job.folders["prune"])
    for name, folder in zip(TORCH_MODELS, folders, strict=True):
        path = f"torch, {job.settings.dtype}"
        yield Candidate(name, path, partial(TorchHarness, folder, job.settings.dtype))


def _exported_models(job: Job[EvalSettings]) -> Iterator[Candidate]:
    from moe_export.evaluation.harness.models import OrtHarness  # noqa: PLC0415 - an extra

    provider = job.settings.provider or "cpu"
    for name, folder in exported(job.folders["export"]).items():
        for operator in job.settings.operators or ("native",):
            path = f"ONNX Runtime, {execution_path(operator, provider)}"
            yield Candidate(name, path, partial(OrtHarness, folder, provider, operator))
