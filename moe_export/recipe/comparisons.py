"""Sections that compare many plans of one model: rankings, and widths with formats."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moe_export.recipe.base import Count, Section, Seed, Share
from moe_export.recipe.calibrate import Task
from moe_export.recipe.importance import RankingScore, Score
from moe_export.recipe.prune import PruneSettings
from moe_export.recipe.quantize import ExpertChoice
from moe_export.recipe.ranking import RankingSettings, Scope


class BakeoffSettings(Section):
    """A comparison of rankings: every score in every scope at every `keep`, on one calibration draw
    per seed, masked, refitted or both.

    The shared expert stays whole, so that rankings of whole experts compare with the others.

    Attributes:
        scores: Scores that rank dimensions; `auto` chooses by the ranking section.
        scopes: Scopes of these scores; `auto` has its own.
        refit: `false` to mask what is dropped, `true` to refit `down` as well, or both.
        keeps: Shares of all expert dimensions that are kept.
        seeds: Seeds of the calibration draws.
        whole_expert_scores: Scores that rank whole experts.
        tasks: Held-out documents that the models are scored on.
        sequence_length: Most tokens of such a document; windows of a text have exactly so many.
        ranking: Choice of `auto`; follows the ranking section and may not be given.
        prune: Refit; follows the prune section and may not be given.
    """

    scores: Annotated[tuple[RankingScore, ...], Field(min_length=1)]
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1)] = ("model",)
    refit: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)
    keeps: Annotated[tuple[Share, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    whole_expert_scores: tuple[Score, ...] = ()
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    sequence_length: Count = 512
    ranking: RankingSettings | None = None
    prune: PruneSettings | None = None


class SweepSettings(Section):
    """Models that `moe-export sweep` compares; all else is taken from the plan section.

    Every `keep` is combined with every format of the experts, and with every `top_k`. At every
    budget, each format is filled up to it, and the plan chooses (`quantize.experts: auto`).

    Attributes:
        keeps: Shares of all expert dimensions that are kept.
        formats: Formats of the experts.
        top_k: Experts per token, beside the plan's own; none unless given.
        budgets: Shares of the bytes of the unpruned model exported.
    """

    keeps: tuple[Share, ...] = (1.0, 0.75, 0.5, 0.25)
    formats: Annotated[tuple[ExpertChoice, ...], Field(min_length=1)] = ("float", "int8", "int4")
    top_k: tuple[Count, ...] = ()
    budgets: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.3, 0.2)
