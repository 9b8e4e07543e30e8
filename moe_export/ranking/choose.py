"""Choice of the ranking that diverges least from the unpruned model on held-out sequences.

With q the unpruned model and p a candidate, the mean that decides is

    sum over sources k of share[k] * (sum over scored tokens t of k of KL(q[t], p[t])) / n_k

with n_k the scored tokens of the source: those of the answers if it has prompts, else all but the
first of each sequence. The shares are those of the recipe's weights; without weights all sources
count alike, however many tokens they have, because answers are short.

All candidates are measured on a few sequences of every source (`ranking.first`), which halves the
cost. The best (`ranking.finalists`) are measured on all, refitted if the plan will be.

Legend: S sequences, K sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from moe_export.artifacts.calibration import Calibration, CalibrationSummary, HeldOut
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.ranking import Ranking
from moe_export.checkpoint import Checkpoint
from moe_export.families.axis import Axis
from moe_export.ranking.candidates import Planned, candidates_of
from moe_export.ranking.held_out import HeldOutSet
from moe_export.ranking.refits import Columns, refits, refitted_layers
from moe_export.ranking.rounds import Round, Steps
from moe_export.ranking.table import answer_loss, mean_kl, row
from moe_export.recipe import RankingSettings
from moe_export.system.progress import Progress, silent
from moe_export.torch_model.deterministic import deterministic


def chosen_ranking(
    directory: Path,
    axis: Axis,
    importance: Importance,
    calibrated: Path,
    settings: RankingSettings,
    folder: Path,
    progress: Progress = silent,
) -> Ranking:
    """Plans the candidates, and chooses among them; see `choose_ranking`.

    Args:
        directory: Unpruned checkpoint.
        axis: Experts that may be pruned.
        importance: Scores of the candidates.
        calibrated: Folder of the calibration set and of what was held out from it.
        settings: Candidates and their budget.
        folder: Folder of finished measurements.
        progress: Function that is called for every layer of every model.

    Raises:
        PlanError: The budget cannot be met.
    """
    names = tuple(source.name for source in CalibrationSummary.load(calibrated).sources)
    return choose_ranking(
        directory,
        list(candidates_of(Checkpoint(directory), axis, importance, settings)),
        Calibration.load(calibrated),
        HeldOutSet(HeldOut.load(calibrated), names),
        settings,
        folder,
        progress,
    )


def choose_ranking(
    directory: Path,
    candidates: list[Planned],
    calibration: Calibration,
    held_out: HeldOutSet,
    settings: RankingSettings,
    folder: Path,
    progress: Progress = silent,
) -> Ranking:
    """Measures candidates and chooses among them.

    Args:
        directory: Unpruned checkpoint.
        candidates: Candidates in the order in which ties are decided.
        calibration: Sequences that finalists are refitted on.
        held_out: Sequences that candidates are measured on.
        settings: Sizes of the two rounds, and the fitting of the finalists.
        folder: Folder of finished measurements. An interrupted call with the same arguments
            resumes from it; it may be removed afterwards.
        progress: Function that is called for every layer of every model.
    """
    all_S = np.arange(len(held_out.sequences.prompt_S))
    first_S = held_out.first(settings.first)
    finalists = min(settings.finalists, len(candidates))
    top_k = settings.plan.top_k if settings.plan is not None else None
    steps = Steps(progress, 2 + len(candidates) + finalists)
    with deterministic():
        first = Round(directory, held_out.sequences, first_S, folder / "first", steps, top_k)
        early = [first.measured(each) for each in candidates]
        early_nats = [mean_kl(each, held_out) for each in early]
        # The sort is stable, so that of equal candidates the earlier one goes on.
        order = sorted(range(len(candidates)), key=lambda number: early_nats[number])[:finalists]
        last = Round(directory, held_out.sequences, all_S, folder / "last", steps, top_k)
        found = {
            number: last.measured(
                candidates[number], _refit(directory, calibration, settings, folder)
            )
            for number in sorted(order)
        }
        unpruned = last.unpruned()
    progress(1, 1, "done")
    best = min(found, key=lambda number: mean_kl(found[number], held_out))
    rows = tuple(
        row(each, early_nats[number], found.get(number), found[best], held_out)
        for number, each in enumerate(candidates)
    )
    return Ranking(
        choice=rows[best],
        candidates=rows,
        refitted=_refits(settings),
        weights=tuple(held_out.weight_K.tolist()),
        answered=tuple(held_out.answered_K.tolist()),
        first_sequences=len(first_S),
        sequences=len(all_S),
        scored_tokens=int(unpruned.tokens_S.sum()),
        unpruned_answer_loss_nats=answer_loss(unpruned, held_out),
    )


def _refits(settings: RankingSettings) -> bool:
    return settings.prune is not None and refits(settings.prune)


def _refit(
    directory: Path, calibration: Calibration, settings: RankingSettings, folder: Path
) -> Callable[[Planned], Iterator[Columns]] | None:
    """Function that refits a candidate layer by layer; None if the recipe does not refit."""
    prune, tokens = settings.prune, settings.fitting_tokens
    if prune is None or not refits(prune):
        return None
    top_k = settings.plan.top_k if settings.plan is not None else None
    return lambda candidate: refitted_layers(
        directory, candidate.kept, calibration, prune, tokens, folder, top_k
    )
