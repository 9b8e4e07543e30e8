"""The bakeoff stage: each score masks the unpruned model at each `keep`, on each calibration draw.

Masking a dimension gives the same logits as removing it, so nothing needs to be exported.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.bakeoff import Bakeoff, RankingResult
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.validation import TaskScores
from moe_export.checkpoint import Checkpoint
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.evaluation.masking import ScoredTask, masked, score_tasks
from moe_export.evaluation.tally import mean_exact_match
from moe_export.experts import kept_rows
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.planning.blocks import WidthRule
from moe_export.planning.widths import solve_widths
from moe_export.recipe import BakeoffSettings
from moe_export.reporting.bakeoff_table import bakeoff_html, bakeoff_markdown
from moe_export.stages.job import Job
from moe_export.torch_model import load_torch_model

LENGTH = 512

Masks = list[list[NDArray[np.int64]]]
"""Kept positions per layer and expert."""


def run(job: Job[BakeoffSettings]) -> None:
    """Writes `Bakeoff`, and the tables and the page that are rendered from it."""
    settings = job.settings
    spec = spec_of(Checkpoint(job.model).config)
    model = load_torch_model(job.model, torch.float32)
    tasks = {
        name: ScoredTask(
            has_answers(task),
            draw(task, job.model, task.items, LENGTH, TEST_SEED, "test").sequences,
        )
        for name, task in task_names(settings.tasks).items()
    }
    baseline = score_tasks(model, tasks)
    rankings = [("dimension", score) for score in settings.scores]
    rankings += [("expert", score) for score in settings.whole_expert_scores]
    total = len(job.folders) * len(rankings) * len(settings.keeps)
    results: list[RankingResult] = []
    # Some rankings are the same in every draw; equal masks are scored once.
    known: dict[str, dict[str, TaskScores]] = {}
    for seed, folder in zip(settings.seeds, job.folders.values(), strict=True):
        scores = Importance.load(folder).scores
        for unit, score in rankings:
            for keep in settings.keeps:
                job.progress(len(results), total, f"{score} at {keep:.0%}, draw {seed}")
                masks, kept = masks_of(scores[score], spec, keep, unit)
                digest = _digest(masks)
                if digest not in known:
                    with masked(model, masks):
                        known[digest] = score_tasks(model, tasks)
                results.append(
                    RankingResult(
                        score=score,
                        unit=unit,
                        keep=keep,
                        seed=seed,
                        kept=kept,
                        tasks=known[digest],
                        mean_exact_match=mean_exact_match(known[digest]),
                    )
                )
    job.progress(total, total, "done")
    bakeoff = Bakeoff(tasks=tuple(tasks), baseline=baseline, results=tuple(results))
    bakeoff.save(job.out)
    (job.out / Bakeoff.TABLE).write_text(bakeoff_markdown(bakeoff), encoding="utf-8")
    (job.out / Bakeoff.PAGE).write_text(bakeoff_html(bakeoff), encoding="utf-8")


def masks_of(
    importance: list[NDArray[np.float64]], spec: ModelSpec, keep: float, unit: str
) -> tuple[Masks, float]:
    """Returns the dimensions that a ranking over the whole model keeps, and their fraction."""
    axis = Axis(spec)
    widths = solve_widths(importance, axis.tables, round(keep * axis.rows), WidthRule(unit=unit))
    masks = [
        kept_rows(layer_R, table, layer_widths)
        for layer_R, table, layer_widths in zip(importance, axis.tables, widths, strict=True)
    ]
    return masks, sum(map(sum, widths)) / axis.rows


def _digest(masks: Masks) -> str:
    digest = hashlib.sha256()
    for experts in masks:
        for kept in experts:
            digest.update(len(kept).to_bytes(4, "little"))
            digest.update(kept.tobytes())
    return digest.hexdigest()
