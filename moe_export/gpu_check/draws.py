"""Choice of experts by the tokens of a timed layer.

Legend: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_export.testing import layer_sizes as sizes


def routing(tokens: int, draw: int) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    """Distinct experts of each token, all equally likely, and their routing weights.

    The draws from 0 to E / K - 1 together choose each expert equally often, so that the chosen
    experts have the mean width on average, even for one token.

    Args:
        tokens: T.
        draw: Number of the draw, from 0 to E / K - 1.

    Returns:
        Experts [T, K] int64 and weights [T, K] float16.
    """
    random = np.random.default_rng(tokens)
    order_TE = random.random((tokens, sizes.EXPERTS)).argsort(axis=1)
    first = draw * sizes.TOP_K
    indices_TK = order_TE[:, first : first + sizes.TOP_K].copy()
    return indices_TK, random.random((tokens, sizes.TOP_K)).astype(np.float16)
