"""Scores of importance: their names, and the section that computes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_export.recipe.base import Count, OneOf, Section
from moe_export.scores import SCORES

Score = Annotated[str, OneOf(lambda: tuple(SCORES))]
"""Name of a score of `moe_export.scores.SCORES`."""

DROPPING_SCORE: Score = "fisher_margin"
ROUNDING_SCORE: Score = "rounding_margin"
"""Scores that choosing formats needs: the ranking, and the cost of rounding in the same unit."""


class ImportanceSettings(Section):
    """Scores to be computed, in batches of the calibration set.

    Attributes:
        scores: Names of the scores.
        batch_tokens: Most tokens of a batch, padding included.
        dtype: Dtype in which the model runs.
        shared_expert: `true` to score the dimensions of the shared expert too; follows
            `plan.shared_expert` and may not be given.
    """

    scores: Annotated[tuple[Score, ...], Field(min_length=1)] = ("fisher_margin",)
    batch_tokens: Count = 4096
    dtype: Literal["float32", "bfloat16"] = "float32"
    shared_expert: bool | None = None
