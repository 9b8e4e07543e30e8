"""`ranking.json`: rankings compared on held-out sequences, and the one that the plan takes."""

from __future__ import annotations

from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record


class MeasuredSource(Record):
    """Divergence of a candidate on the held-out sequences of one source.

    Attributes:
        source: name of the source in the recipe.
        kl_nats: mean KL from the unpruned model per scored token.
        kl_nats_stderr: its standard error over the sequences; None for a single sequence.
        loss_nats: mean negative log-likelihood per scored token.
    """

    source: str
    kl_nats: float
    kl_nats_stderr: float | None
    loss_nats: float


class Candidate(Record):
    """A ranking that was measured.

    Attributes:
        score: name of the ranking's score.
        scope: dimensions that are ranked together: the model or a layer.
        kept: fraction of rows that are kept.
        first_kl_nats: mean KL over the sources on the first sequences, masked.
        kl_nats: mean KL over the sources on all sequences, refitted if finalists are; None for a
            candidate that is no finalist.
        kl_nats_stderr: its standard error; None for a candidate that is no finalist, or with a
            single sequence of a source.
        excess_nats: `kl_nats` less that of the choice; None for a candidate that is no finalist.
        excess_nats_stderr: standard error of that difference, sequence by sequence; None likewise.
        answer_loss_nats: mean over the sources with answers of the negative log-likelihood per
            answer token; None for a candidate that is no finalist, or without such sources.
        sources: measurements by source, in the recipe's order; empty for one that is no finalist.
    """

    score: str
    scope: str
    kept: float
    first_kl_nats: float
    kl_nats: float | None = None
    kl_nats_stderr: float | None = None
    excess_nats: float | None = None
    excess_nats_stderr: float | None = None
    answer_loss_nats: float | None = None
    sources: tuple[MeasuredSource, ...]


class Ranking(JsonArtifact):
    """Comparison of rankings at the budget of the plan, made by the ranking stage.

    Attributes:
        choice: the finalist with the least KL, which the plan takes.
        candidates: all candidates, in the order in which ties are decided.
        refitted: True if the finalists were refitted.
        weights: weight of each source in the mean, in the recipe's order, which sum to 1.
        answered: True for each source whose answers are scored alone; otherwise all its tokens are.
        first_sequences: sequences that all candidates were measured on.
        sequences: sequences that the finalists were measured on.
        scored_tokens: scored tokens of these.
        unpruned_answer_loss_nats: `answer_loss_nats` of the unpruned model; None without such
            sources.
    """

    FILE: ClassVar[str] = "ranking.json"

    choice: Candidate
    candidates: tuple[Candidate, ...]
    refitted: bool
    weights: tuple[float, ...]
    answered: tuple[bool, ...]
    first_sequences: int
    sequences: int
    scored_tokens: int
    unpruned_answer_loss_nats: float | None
