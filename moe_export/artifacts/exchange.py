"""What rounding costs beside dropping: scores brought into one currency by measurement.

`fisher_margin` and `rounding_margin` are in one unit, but neither is what the model then loses. The
first adds up single dimensions, as if dropping many were not worse than dropping each alone; the
second takes the weights' errors for noise of that size. So both are measured once per model, as KL
from the model itself on some calibration tokens, and a layer's rounding counts

    rate = (KL with the layer's experts rounded / what was predicted of that)
         / (KL with dimensions dropped / what was predicted of that)

times what was predicted. Dropping is measured at several shares, and counts where it costs as much
as rounding all layers does: there the two are weighed against each other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.artifacts.base import load_json, save_json

EXCHANGE_FILE = "exchange.json"

EXCHANGE_TOKENS = 8192
"""So many of the calibration tokens it is measured on at most."""


@dataclass(frozen=True)
class Measured:
    """A change of the model.

    Attributes:
        predicted: by the scores, in their unit.
        kl_nats: mean per token, from the model as it is.
    """

    predicted: float
    kl_nats: float


@dataclass(frozen=True)
class Exchange:
    """What was measured of one model.

    Attributes:
        rounded: by layer, its experts in `format` alone; nothing predicted without experts.
        all_rounded: those of all layers.
        dropped: dimensions of least importance, in ascending order of how many.
        tokens: that it was measured on.
        format: that was rounded to.
        group_size: the same.
    """

    rounded: tuple[Measured, ...]
    all_rounded: Measured
    dropped: tuple[Measured, ...]
    tokens: int
    format: str
    group_size: int

    @property
    def rates(self) -> list[float]:
        """By layer, what its predicted cost of rounding is to be multiplied with.

        >>> one = Measured(predicted=8.0, kl_nats=0.2)
        >>> dropped = (Measured(1.0, 0.1), Measured(4.0, 0.4))
        >>> rounded = (one, Measured(8.0, 0.4))
        >>> found = Exchange(rounded, Measured(16.0, 0.2), dropped, 9, "int4", 32)
        >>> [round(rate, 9) for rate in found.rates]
        [0.25, 0.5]
        """
        cost = self._cost_of_dropping()
        return [
            each.kl_nats / each.predicted / cost if each.predicted > 0 and cost > 0 else 1.0
            for each in self.rounded
        ]

    def _cost_of_dropping(self) -> float:
        """KL over what was predicted, where KL is that of rounding everything."""
        seen = [each for each in self.dropped if each.predicted > 0 and each.kl_nats > 0]
        if not seen:
            return 0.0
        # A power of what is predicted between two measurements; beyond them as at the nearest.
        nats = np.maximum.accumulate([each.kl_nats for each in seen])
        costs = [found / each.predicted for found, each in zip(nats, seen, strict=True)]
        at = np.log(max(self.all_rounded.kl_nats, 1e-300))
        return float(np.exp(np.interp(at, np.log(nats), np.log(costs))))


def save_exchange(folder: Path, exchange: Exchange) -> None:
    """Writes `exchange.json`."""
    save_json(folder / EXCHANGE_FILE, asdict(exchange) | {"rates": exchange.rates})


def load_exchange(folder: Path) -> Exchange:
    """Reads `exchange.json`.

    Raises:
        ArtifactError: it is missing, damaged or of another version.
    """

    def measured(content: dict[str, float]) -> Measured:
        return Measured(content["predicted"], content["kl_nats"])

    content: dict[str, Any] = load_json(folder / EXCHANGE_FILE)
    return Exchange(
        tuple(measured(each) for each in content["rounded"]),
        measured(content["all_rounded"]),
        tuple(measured(each) for each in content["dropped"]),
        content["tokens"],
        content["format"],
        content["group_size"],
    )
