"""Shares of the calibration tokens that the routed experts get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def token_shares(tokens_per_expert: Sequence[NDArray[np.int64]], top_k: int) -> list[Any]:
    """Returns the fraction of all tokens that each expert gets; 0 for a layer without tokens.

    Args:
        tokens_per_expert: calibration tokens routed to each expert, int64 [E] per layer.
        top_k: number of experts that a token is sent to.
    """
    return [tokens_E * top_k / max(int(tokens_E.sum()), 1) for tokens_E in tokens_per_expert]
