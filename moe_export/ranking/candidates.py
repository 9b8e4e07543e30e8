"""Candidates: scores with a scope, each planned at the budget.

Legend: P kept dimensions of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.importance import Importance
from moe_export.checkpoint import Checkpoint
from moe_export.experts import kept_rows
from moe_export.families.axis import Axis
from moe_export.planning.planned import plan_widths, rank_unknown, unreached
from moe_export.recipe import PlanSettings, RankingSettings

Kept = dict[tuple[int, int], NDArray[np.int64]]
"""Ascending positions [P] of the kept dimensions, by layer and expert; a pruned shared expert has
the number after the last routed one."""


@dataclass(frozen=True)
class Planned:
    """A ranking, and what it keeps at the budget.

    Attributes:
        score: Name of the score.
        scope: Scope of the ranking.
        kept: Kept dimensions.
        share: Fraction of all rows that are kept.
    """

    score: str
    scope: str
    kept: Kept
    share: float

    @property
    def name(self) -> str:
        """Short name for files and progress."""
        return f"{self.score}-{self.scope}"


def candidates_of(
    checkpoint: Checkpoint, axis: Axis, importance: Importance, settings: RankingSettings
) -> Iterator[Planned]:
    """Yields the candidates in the order in which ties are decided.

    Raises:
        PlanError: The budget cannot be met.
    """
    assert settings.plan is not None
    scopes = ("model",) if settings.plan.is_solved else settings.scopes
    for score in settings.scores:
        for scope in scopes:
            plan = settings.plan.model_copy(update={"score": score, "scope": scope})
            yield planned(checkpoint, axis, importance, plan)


def planned(
    checkpoint: Checkpoint, axis: Axis, importance: Importance, settings: PlanSettings
) -> Planned:
    """Plans the score and scope of the settings."""
    tokens = importance.tokens_per_expert
    scores = importance.scores[settings.score]
    ranked = rank_unknown(scores, axis, unreached(tokens), settings.unknown)
    widths = plan_widths(checkpoint, axis, ranked, tokens, settings).widths
    kept = {
        (layer, expert): rows_P
        for layer, table in enumerate(axis.tables)
        for expert, rows_P in enumerate(kept_rows(scores[layer], table, widths[layer]))
    }
    share = sum(map(sum, widths)) / axis.rows
    return Planned(settings.score, settings.scope, kept, share)
