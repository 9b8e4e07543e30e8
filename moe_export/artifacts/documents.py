"""`documents.json`: the scores of every held-out document, for comparisons of two models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record


class DocumentScores(Record):
    """Scores of the documents of one task, in the order of scoring.

    Attributes:
        tokens: number of scored tokens of each document.
        matches: True for each document whose scored tokens are all right.
        kl_nats: divergence from the baseline, summed over the tokens of each document; empty
            without a baseline.
        choices: True for each document whose answer is the likeliest of its choices; absent
            for a task without choices.
    """

    tokens: tuple[int, ...]
    matches: tuple[bool, ...]
    kl_nats: tuple[float, ...]
    choices: tuple[bool, ...] | None = None


DocumentsByTask = Mapping[str, DocumentScores]
"""Task name to the scores of its documents, for one model."""


class Documents(JsonArtifact):
    """Document scores of a run; two runs of a recipe on one machine give the same file.

    Attributes:
        providers: document scores by execution provider, variant and task.
    """

    FILE: ClassVar[str] = "documents.json"

    providers: dict[str, dict[str, dict[str, DocumentScores]]]
