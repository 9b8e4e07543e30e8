"""Sections that compare many plans of one model: rankings, and widths with formats."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from moe_export.recipe.base import Section, Seed, Share
from moe_export.recipe.calibrate import Task
from moe_export.recipe.importance import Score
from moe_export.recipe.quantize import ExpertChoice


class BakeoffSettings(Section):
    """A comparison of rankings: every score at every `keep`, on one calibration draw per seed.

    The shared expert stays whole, so that rankings of whole experts compare with the others.

    Attributes:
        scores: Scores that rank dimensions.
        keeps: Shares of all expert dimensions that are kept.
        seeds: Seeds of the calibration draws.
        whole_expert_scores: Scores that rank whole experts.
        tasks: Held-out documents that the masked models are scored on.
    """

    scores: Annotated[tuple[Score, ...], Field(min_length=1)]
    keeps: Annotated[tuple[Share, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = (0, 1, 2)
    whole_expert_scores: tuple[Score, ...] = ()
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]


class SweepSettings(Section):
    """Models that `moe-export sweep` compares; all else is taken from the plan section.

    Every `keep` is combined with every format of the experts. At every budget, each format is
    filled up to it, and the plan chooses (`quantize.experts: auto`).

    Attributes:
        keeps: Shares of all expert dimensions that are kept.
        formats: Formats of the experts.
        budgets: Shares of the bytes of the unpruned model exported.
    """

    keeps: tuple[Share, ...] = (1.0, 0.75, 0.5, 0.25)
    formats: Annotated[tuple[ExpertChoice, ...], Field(min_length=1)] = ("float", "int8", "int4")
    budgets: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.4, 0.3, 0.2)
