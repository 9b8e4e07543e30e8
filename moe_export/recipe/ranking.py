"""The section that compares rankings for `plan.score: auto`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_export.recipe.base import Count, DocumentCount, Section
from moe_export.recipe.importance import Score
from moe_export.recipe.plan import PlanSettings
from moe_export.recipe.prune import PruneSettings

Scope = Literal["model", "layer"]
"""Dimensions that are ranked together."""


class RankingSettings(Section):
    """The choice among rankings that is made if `plan.score` is `auto`.

    A candidate is a score with a scope. Each is planned at the budget, and the dimensions that it
    drops are masked in the unpruned model. All candidates are measured on a few held-out sequences
    of every calibration source, and the best of them on all. The candidate with the least
    divergence from the unpruned model is taken; of equal ones, the first in the order below, scopes
    of a score together.

    Attributes:
        scores: Scores of the candidates.
        scopes: Scopes of the candidates; a budget that ranks over the whole model has only `model`.
        held_out: Sequences of each source that are held out from the calibration set. A source with
            too few gives at most a quarter of them, which a warning says.
        first: Held-out sequences of each source that all candidates are measured on.
        finalists: Candidates that are measured on all held-out sequences, refitted if
            `prune.refit` is on.
        fitting_tokens: Most calibration tokens that a finalist is refitted on.
        plan: Budget of the candidates; follows the plan section and may not be given.
        prune: Fitting of the finalists; follows the prune section and may not be given.
    """

    scores: Annotated[tuple[Score, ...], Field(min_length=1)] = (
        "fisher_margin",
        "fisher_margin_weighted",
        "fisher_margin_mixed",
        "fisher_mixed",
        "fisher_weighted",
        "fisher_per_token",
        "router_weighted_activation",
    )
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("model", "layer")
    held_out: DocumentCount = 16
    first: DocumentCount = 4
    finalists: Count = 3
    fitting_tokens: Count = 8192
    plan: PlanSettings | None = None
    prune: PruneSettings | None = None
