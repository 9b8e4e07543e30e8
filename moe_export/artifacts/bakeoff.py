"""`bakeoff.json`: rankings compared by masking and refitting the unpruned model."""

from __future__ import annotations

from typing import ClassVar, Literal

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.validation import TaskScores


class RankingResult(Record):
    """Scores of the model pruned by one ranking.

    Attributes:
        score: name of the ranking's score, or `auto`.
        scope: `layer` if dimensions are ranked within each layer; None if over the model, or if
            `auto` chose.
        refitted: True if `down` is refitted; None if dropped dimensions are only masked.
        choice: score and scope that `auto` chose, such as `fisher, model`; None for a named score.
        unit: unit of removal, `dimension` or `expert`.
        keep: fraction of expert dimensions asked for.
        seed: seed of the calibration draw.
        kept: fraction of expert dimensions that are kept.
        tasks: scores by task name.
        mean_exact_match: mean over the tasks with answers, fraction; None if no task has answers.
    """

    score: str
    scope: Literal["layer"] | None = None
    refitted: Literal[True] | None = None
    choice: str | None = None
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
