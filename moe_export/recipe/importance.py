"""Scores of importance: their names, and the section that computes them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import Field

from moe_export.recipe.base import Count, OneOf, Section
from moe_export.scores import SCORES

Score = Annotated[str, OneOf(lambda: tuple(SCORES))]
"""Name of a score of `moe_export.scores.SCORES`."""

AUTO = "auto"
"""Value of `plan.score` that leaves the choice to the ranking stage."""

RankingScore = Annotated[str, OneOf(lambda: (AUTO, *SCORES))]
"""Name of a score, or `auto`."""

DROPPING_SCORE: Score = "fisher_margin"
ROUNDING_SCORE: Score = "rounding_margin"
"""Default ranking, and the cost of rounding in the same unit."""

ROUNDING_OF: dict[Score, Score] = {
    DROPPING_SCORE: ROUNDING_SCORE,
    "fisher_margin_weighted": "rounding_margin_weighted",
}
"""Rankings that choosing formats can use, each with the cost of rounding in its unit."""


def rounding_pair(scores: Collection[Score]) -> tuple[Score, Score] | None:
    """First ranking that is computed together with its cost of rounding, and that cost."""
    pairs = (pair for pair in ROUNDING_OF.items() if set(pair) <= set(scores))
    return next(pairs, None)


class ImportanceSettings(Section):
    """Scores to be computed, in batches of the calibration set.

    Attributes:
        scores: Names of the scores.
        batch_tokens: Most tokens of a batch, padding included.
        calibration_tokens: Most calibration tokens that scores use, in evenly spread sequences; all
            unless given. Fitting needs more tokens than scores do, and costs less for each.
        dtype: Dtype in which the model runs.
        shared_expert: `true` to score the dimensions of the shared expert too; follows
            `plan.shared_expert` and may not be given.
        top_k: Experts per token; follows `plan.top_k` and may not be given.
    """

    scores: Annotated[tuple[Score, ...], Field(min_length=1)] = ("fisher_margin",)
    batch_tokens: Count = 4096
    calibration_tokens: Count | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    shared_expert: bool | None = None
    top_k: Count | None = None
