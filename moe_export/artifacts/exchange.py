"""The exchange rate between rounding and dropping, measured once per model.

The scores `fisher_margin` (loss when a dimension is dropped) and `rounding_margin` (loss when a
weight is rounded), or the same two with `_weighted`, have one unit, but both are only estimates.
The first adds up single dimensions, although dropping many of them together costs more than their
sum. The second treats rounding errors as random noise.

So both losses are measured, as the KL divergence from the unchanged model on some calibration
tokens. The predicted cost of rounding a layer is then multiplied by

    rate = (KL with the layer's experts rounded / predicted loss of rounding them)
         / (KL with dimensions dropped / predicted loss of dropping them)

Dropping is measured at several fractions. The one counts at which its KL equals that of rounding
all layers, since there a plan weighs the two against each other.
"""

from __future__ import annotations

import numpy as np

from moe_export.artifacts.base import JsonArtifact, Record

EXCHANGE_TOKENS = 8192
"""Largest number of calibration tokens that are used for the measurement."""


class Measured(Record):
    """Predicted and measured loss of one change of the model.

    Attributes:
        predicted: sum of the scores of what is changed, in their unit.
        kl_nats: mean KL per token from the unchanged model, in nats.
    """

    predicted: float
    kl_nats: float


class Exchange(JsonArtifact):
    """All measured changes of one model, made by the importance stage.

    Attributes:
        rounded: loss of rounding the experts of one layer, one entry per layer; 0 without experts.
        all_rounded: loss of rounding the experts of all layers.
        dropped: loss of dropping the least important dimensions, with more of them in each entry.
        tokens: calibration tokens that the losses are means over.
        format: format that experts were rounded to.
        group_size: values of a column that share a scale in that format.
    """

    FILE = "exchange.json"
    DERIVED = ("rates",)

    rounded: tuple[Measured, ...]
    all_rounded: Measured
    dropped: tuple[Measured, ...]
    tokens: int
    format: str
    group_size: int

    @property
    def rates(self) -> list[float]:
        """Factor for the predicted cost of rounding, one per layer.

        >>> def loss(predicted, kl_nats):
        ...     return Measured(predicted=predicted, kl_nats=kl_nats)
        >>> exchange = Exchange(
        ...     rounded=(loss(8.0, 0.2), loss(8.0, 0.4)),
        ...     all_rounded=loss(16.0, 0.2),
        ...     dropped=(loss(1.0, 0.1), loss(4.0, 0.4)),
        ...     tokens=9,
        ...     format="int4",
        ...     group_size=32,
        ... )
        >>> [round(rate, 9) for rate in exchange.rates]
        [0.25, 0.5]
        """
        cost = self._cost_of_dropping()
        return [
            each.kl_nats / each.predicted / cost if each.predicted > 0 and cost > 0 else 1.0
            for each in self.rounded
        ]

    def _cost_of_dropping(self) -> float:
        """Measured over predicted loss of dropping, at the KL of rounding all layers."""
        seen = [each for each in self.dropped if each.predicted > 0 and each.kl_nats > 0]
        if not seen:
            return 0.0
        # Between two measurements a power of the predicted loss; beyond them as at the nearest.
        nats = np.maximum.accumulate([each.kl_nats for each in seen])
        costs = [kl_nats / each.predicted for kl_nats, each in zip(nats, seen, strict=True)]
        at = np.log(max(self.all_rounded.kl_nats, 1e-300))
        return float(np.exp(np.interp(at, np.log(nats), np.log(costs))))
