"""Result of a training, in memory or layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from moe_export.artifacts.tuning import TunedLayer, TunedRouter
from moe_export.families.base import ModelSpec
from moe_export.tuning.methods import Chosen


@dataclass(frozen=True)
class Outcome:
    """Result of a training.

    Attributes:
        spec: Sizes of the tuned model.
        values: Trained tensors by name, in the dtypes that they are stored in.
        before: Mean held-out loss of each source before, nats per weighted token.
        after: The same losses afterwards.
        steps: Number of steps; in each layer if it went layer by layer.
        losses: Loss of each step; none if it went layer by layer.
        tokens: Tokens of the steps, padding excluded.
        positions: Positions of the steps, padding included.
        documents: Documents of the steps, each as often as it was used.
        experts: Experts that were trained, by layer; None if all were.
        routers: Routers that got a bias; None without.
        layers: Errors of each layer's block; None unless it went layer by layer.
    """

    spec: ModelSpec
    values: dict[str, NDArray[Any]]
    before: list[float]
    after: list[float]
    steps: int
    losses: list[float]
    tokens: int
    positions: int
    documents: int
    experts: Chosen | None = None
    routers: tuple[TunedRouter, ...] | None = None
    layers: tuple[TunedLayer, ...] | None = None
