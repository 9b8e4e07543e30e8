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


def token_shares(tokens_per_expert: Sequence[NDArray[np.int64]], spec: ModelSpec) -> Shares:
    """Shares from the calibration tokens that reached each expert, all 0 in a layer without any.

    Args:
        tokens_per_expert: Number of tokens, [E] int64 per layer.
        spec: Sizes of the model, with the experts that every token gets.
    """
    return [
        tokens_E / max(_tokens(tokens_E, spec, layer), 1.0)
        for layer, tokens_E in enumerate(tokens_per_expert)
    ]


def _tokens(tokens_E: NDArray[np.int64], spec: ModelSpec, layer: int) -> float:
    """Number of tokens that went through a layer."""
    if spec.condensers is not None and spec.condensers.experts[layer]:
        return float(tokens_E[spec.condensers.experts[layer][0]])
    return int(tokens_E.sum()) / spec.active_experts


def uniform_shares(spec: ModelSpec) -> Shares:
    """Shares of a router that sends tokens to all experts alike, and to condensers only as such."""
    shares = []
    for layer, widths in enumerate(spec.widths):
        always = spec.condensers.experts[layer] if spec.condensers is not None else ()
        others = max(spec.num_experts - len(always), 1)
        share_E = np.full(len(widths), min((spec.active_experts - len(always)) / others, 1.0))
        share_E[list(always)] = 1.0
        shares.append(share_E)
    return shares


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
    if spec.compressed is not None:
        # A token reads only the vectors of its auxiliary experts.
        vectors = [t for t in spec.tensors.values() if t.role.startswith("compressed")]
        unread = 1 - spec.compressed.auxiliary / spec.num_experts
        active -= unread * sum(tensor.elements for tensor in vectors)
    for tensor in experts:
        assert tensor.layer is not None
        assert tensor.expert is not None
        active += tensor.elements * float(shares[tensor.layer][tensor.expert])
    return active
