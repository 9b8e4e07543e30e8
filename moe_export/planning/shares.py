"""Shares of the tokens that experts get, and the parameters that a token is multiplied with.

Legend: E routed experts of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec

Shares = list[NDArray[np.float64]]
"""Share of all tokens that each routed expert gets, [E] per layer."""


def token_shares(tokens_per_expert: Sequence[NDArray[np.int64]], top_k: int) -> Shares:
    """Shares from the calibration tokens that reached each expert, all 0 in a layer without any.

    >>> [share_E.tolist() for share_E in token_shares([np.array([3, 1]), np.array([0, 0])], 2)]
    [[1.5, 0.5], [0.0, 0.0]]

    Args:
        tokens_per_expert: Number of tokens, [E] int64 per layer.
        top_k: Experts chosen per token.
    """
    return [tokens_E * top_k / max(int(tokens_E.sum()), 1) for tokens_E in tokens_per_expert]


def uniform_shares(spec: ModelSpec) -> Shares:
    """Shares of a router that sends tokens to all experts alike."""
    return [np.full(len(widths), spec.top_k / spec.num_experts) for widths in spec.widths]


def active_parameters(spec: ModelSpec, shares: Shares) -> float | None:
    """Parameters outside the routed experts, and those of the experts that a token is sent to.

    Experts differ in width once pruned, so that this is a mean over tokens.

    Args:
        spec: Sizes of the model.
        shares: Share of all tokens that each expert gets.

    Returns:
        Number of parameters; None if no token reached any expert of a layer with experts.
    """
    if any(len(share_E) and not share_E.any() for share_E in shares):
        return None
    experts = [tensor for tensor in spec.tensors.values() if tensor.expert is not None]
    active = float(spec.parameters - sum(tensor.elements for tensor in experts))
    for tensor in experts:
        assert tensor.layer is not None
        assert tensor.expert is not None
        active += tensor.elements * float(shares[tensor.layer][tensor.expert])
    return active
