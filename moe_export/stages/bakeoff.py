"""The bakeoff stage: each ranking prunes the model at each `keep`, on each calibration draw.

Masking a dimension gives the same logits as removing it, so nothing needs to be exported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.bakeoff import Bakeoff, RankingResult
from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.validation import TaskScores
from moe_export.checkpoint import Checkpoint
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.evaluation.masking import ScoredTask, masked, score_tasks
from moe_export.evaluation.tally import mean_exact_match
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.ranking.candidates import Planned, planned
from moe_export.ranking.choose import chosen_ranking
from moe_export.ranking.refits import refitted_layers, with_refit
from moe_export.recipe import AUTO, BakeoffSettings, PlanSettings
from moe_export.reporting.bakeoff_table import bakeoff_html, bakeoff_markdown
from moe_export.stages.job import Job
from moe_export.torch_model import load_torch_model


@dataclass(frozen=True)
class _Entry:
    """A ranking that is compared.

    Attributes:
        score: Name of the score, or `auto`.
        scope: Scope of the ranking.
        unit: Unit of removal.
        keep: Share of all expert dimensions that is kept.
        refits: True if `down` is refitted.
    """

    score: str
    scope: str
    unit: str
    keep: float
    refits: bool

    @property
    def plan(self) -> PlanSettings:
        """The plan of the ranking."""
        return PlanSettings.model_validate(
            {"keep": self.keep, "score": self.score, "scope": self.scope, "unit": self.unit}
        )


def run(job: Job[BakeoffSettings]) -> None:
    """Writes `Bakeoff`, and the tables and the page that are rendered from it."""
    settings = job.settings
    model = load_torch_model(job.model, torch.float32)
    tasks = {
        name: ScoredTask(
            has_answers(task),
            draw(
                task, job.model, task.items, settings.sequence_length, TEST_SEED, "test"
            ).sequences,
        )
        for name, task in task_names(settings.tasks).items()
    }
    baseline = score_tasks(model, tasks)
    entries = list(_entries(settings))
    total = len(settings.seeds) * len(entries)
    results: list[RankingResult] = []
    # Some rankings are the same in every draw; equal ones are scored once.
    known: dict[str, dict[str, TaskScores]] = {}
    for seed in settings.seeds:
        draws = _Draw(job, seed)
        for entry in entries:
            where = f"{entry.score} at {entry.keep:.0%}, draw {seed}"
            job.progress(len(results), total, where)
            ranking = draws.planned(entry)
            columns = draws.refitted(ranking) if entry.refits else {}
            digest = _digest(ranking, columns)
            if digest not in known:
                with masked(model, _positions(ranking, draws.axis), columns):
                    known[digest] = score_tasks(model, tasks)
            results.append(_result(entry, ranking, seed, known[digest]))
    job.progress(total, total, "done")
    bakeoff = Bakeoff(tasks=tuple(tasks), baseline=baseline, results=tuple(results))
    bakeoff.save(job.out)
    (job.out / Bakeoff.TABLE).write_text(bakeoff_markdown(bakeoff), encoding="utf-8")
    (job.out / Bakeoff.PAGE).write_text(bakeoff_html(bakeoff), encoding="utf-8")


def _entries(settings: BakeoffSettings) -> Iterator[_Entry]:
    """Yields the rankings of one draw."""
    named = [
        (score, scope, "dimension")
        for score in settings.scores
        for scope in (("model",) if score == AUTO else settings.scopes)
    ]
    named += [(score, "model", "expert") for score in settings.whole_expert_scores]
    for score, scope, unit in named:
        for keep in settings.keeps:
            for refits in settings.refit:
                yield _Entry(score, scope, unit, keep, refits)


class _Draw:
    """A calibration draw with its scores.

    Args:
        job: Execution of the stage.
        seed: Seed of the draw.
    """

    def __init__(self, job: Job[BakeoffSettings], seed: int) -> None:
        self._settings, self._model = job.settings, job.model
        self._calibrate = job.folders[f"draw-{seed}/calibrate"]
        self._partial = job.partial / f"draw-{seed}"
        self._checkpoint = Checkpoint(job.model)
        self._importance = Importance.load(job.folders[f"draw-{seed}"])
        self.axis = Axis(spec_of(self._checkpoint.config))

    def planned(self, entry: _Entry) -> Planned:
        """Plans a ranking; `auto` is replaced by its choice."""
        plan = entry.plan
        if entry.score == AUTO:
            ranking, prune = self._settings.ranking, self._settings.prune
            assert ranking is not None
            assert prune is not None
            settings = ranking.model_copy(
                update={
                    "plan": plan,
                    "prune": with_refit(prune, entry.refits),
                }
            )
            folder = self._partial / f"{entry.keep}-{entry.refits}"
            choice = chosen_ranking(
                self._model, self.axis, self._importance, self._calibrate, settings, folder
            ).choice
            plan = plan.model_copy(update={"score": choice.score, "scope": choice.scope})
        return planned(self._checkpoint, self.axis, self._importance, plan)

    def refitted(self, ranking: Planned) -> dict[str, NDArray[np.float32]]:
        """Refitted columns of `down` by tensor name."""
        prune = self._settings.prune
        assert prune is not None
        calibration = Calibration.load(self._calibrate)
        layers = refitted_layers(
            self._model, ranking.kept, calibration, prune, prune.calibration_tokens, self._partial
        )
        return {name: columns for layer in layers for name, columns in layer.items()}


def _result(
    entry: _Entry, ranking: Planned, seed: int, tasks: dict[str, TaskScores]
) -> RankingResult:
    return RankingResult(
        score=entry.score,
        scope="layer" if entry.scope == "layer" else None,
        refitted=True if entry.refits else None,
        choice=f"{ranking.score}, {ranking.scope}" if entry.score == AUTO else None,
        unit=entry.unit,
        keep=entry.keep,
        seed=seed,
        kept=ranking.share,
        tasks=tasks,
        mean_exact_match=mean_exact_match(tasks),
    )


def _positions(ranking: Planned, axis: Axis) -> list[list[NDArray[np.int64]]]:
    """Kept positions per layer and expert."""
    return [
        [ranking.kept[layer, expert] for expert in range(len(table.widths))]
        for layer, table in enumerate(axis.tables)
    ]


def _digest(ranking: Planned, columns: dict[str, NDArray[np.float32]]) -> str:
    digest = hashlib.sha256()
    for kept_P in ranking.kept.values():
        digest.update(len(kept_P).to_bytes(4, "little"))
        digest.update(kept_P.tobytes())
    for columns_DP in columns.values():
        digest.update(np.ascontiguousarray(columns_DP).tobytes())
    return digest.hexdigest()
