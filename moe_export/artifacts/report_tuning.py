"""Part of `report.json` about the training of the model."""

from __future__ import annotations

from typing import Literal

from moe_export.artifacts.base import Record
from moe_export.artifacts.tuning import TunedSource, VectorMovement


class TuningFacts(Record):
    """Training of the model, and what it gained on held-out documents.

    Attributes:
        method: method in the recipe's word.
        objective: goal of the loss, in the recipe's word.
        steps: number of steps.
        tokens: tokens trained on, padding excluded, each as often as it was.
        trained_parameters: number of parameters that were trained.
        experts_per_token: routed experts that are computed for a token, at most.
        before: held-out loss before, nats per weighted token, the mean over the sources by weight.
        after: the same loss afterwards.
        largest_bias: largest magnitude of a router's bias; absent without biases.
        condensers: experts of a layer that every token gets; absent without biases.
        vectors: movement of the vectors of compressed experts; absent without.
        sources: the sources of documents with their held-out losses.
    """

    method: str
    objective: Literal["next_token", "distill"]
    steps: int
    tokens: int
    trained_parameters: int
    experts_per_token: int
    before: float
    after: float
    largest_bias: float | None = None
    condensers: int | None = None
    vectors: VectorMovement | None = None
    sources: tuple[TunedSource, ...]
