"""Held-out sequences of every source, with the weights of the sources.

Legend: S sequences, K sources.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import HeldOut


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out sequences, and the weight of each source.

    Attributes:
        sequences: The sequences.
        names: Name of each source.
    """

    sequences: HeldOut
    names: tuple[str, ...]

    @property
    def weight_K(self) -> NDArray[np.float64]:
        """Weights of the sources, which sum to 1."""
        weight_K = self.sequences.weight_K
        if not len(weight_K):
            weight_K = np.ones(len(self.names))
        shares_K: NDArray[np.float64] = weight_K / weight_K.sum()
        return shares_K

    @property
    def answered_K(self) -> NDArray[np.bool_]:
        """True for sources with prompts, of which only answers are scored."""
        prompt_S, source_S = self.sequences.prompt_S, self.sequences.source_S
        return np.array([(prompt_S[source_S == k] > 1).all() for k in range(len(self.names))])

    def first(self, number: int) -> NDArray[np.int64]:
        """Evenly spread sequences of every source, int64."""
        places = []
        for source in range(len(self.names)):
            own_S = np.flatnonzero(self.sequences.source_S == source)
            count = min(number, len(own_S))
            places.append(own_S[(np.arange(count) * 2 + 1) * len(own_S) // (2 * count)])
        return np.concatenate(places)
