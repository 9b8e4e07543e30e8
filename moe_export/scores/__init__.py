"""The registry of scores, which rank dimensions.

Importing this loads neither torch nor transformers; `moe_export.scoring.collect` computes them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from moe_export.errors import RecipeError
from moe_export.scores import activations, gradients, mixtures, weights
from moe_export.scores.base import DataScore, DerivedScore, Score, WeightScore

SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        *gradients.SCORES,
        *mixtures.SCORES,
        *activations.SCORES,
        *weights.SCORES,
    )
}


def register_score(score: Score) -> None:
    """Adds a score, whose name can then stand in recipes of this process.

    A run identifies a score by its name alone: give a changed formula another name.

    Args:
        score: a `DataScore`, `WeightScore` or `DerivedScore`.

    Raises:
        RecipeError: another score has the name.
    """
    if SCORES.setdefault(score.name, score) is not score:
        raise RecipeError(f"a score {score.name!r} is registered already; give another name")


def scores_named(names: Iterable[str]) -> list[Score]:
    """The scores of the given names, in that order.

    Raises:
        RecipeError: one is unknown.
    """
    scores = []
    for name in names:
        if name not in SCORES:
            near = difflib.get_close_matches(name, SCORES, n=1, cutoff=0.0)
            raise RecipeError(
                f"importance.scores: {name!r} is unknown; known are {', '.join(SCORES)}, the "
                f"nearest is {near[0]!r}"
            )
        scores.append(SCORES[name])
    return scores


__all__ = [
    "SCORES",
    "DataScore",
    "DerivedScore",
    "Score",
    "WeightScore",
    "register_score",
    "scores_named",
]
