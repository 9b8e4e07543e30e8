"""`bakeoff.json`: rankings compared by masking the unpruned model."""

from __future__ import annotations

from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.validation import TaskScores


class RankingResult(Record):
    """Scores of the model masked by one ranking.

    Attributes:
        score: name of the ranking's score.
        unit: unit of removal, `dimension` or `expert`.
        keep: fraction of expert dimensions asked for.
        seed: seed of the calibration draw.
        kept: fraction of expert dimensions that are kept.
        tasks: scores by task name.
        mean_exact_match: mean over the tasks with answers, fraction; None if no task has answers.
    """

    score: str
    unit: str
    keep: float
    seed: int
    kept: float
    tasks: dict[str, TaskScores]
    mean_exact_match: float | None


class Bakeoff(JsonArtifact):
    """Results of all rankings at all fractions kept, on all calibration draws.

    Attributes:
        tasks: names of the tasks.
        baseline: scores of the unpruned model by task name.
        results: one result per ranking, fraction kept and draw.
    """

    FILE: ClassVar[str] = "bakeoff.json"
    TABLE: ClassVar[str] = "bakeoff.md"
    PAGE: ClassVar[str] = "bakeoff.html"

    tasks: tuple[str, ...]
    baseline: dict[str, TaskScores]
    results: tuple[RankingResult, ...]
