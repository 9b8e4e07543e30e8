"""Parameters of a model: all of them, and those that a token is multiplied with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec


def parameters(spec: ModelSpec) -> int:
    """Returns the number of parameters of a model."""
    return sum(tensor.elements for tensor in spec.tensors.values())


def active_parameters(spec: ModelSpec, shares: Sequence[NDArray[np.float64]]) -> float:
    """Returns the mean number of parameters that a token is multiplied with.

    Counted are all parameters outside the routed experts, embeddings included, and those of each
    routed expert times its share of the tokens.

    Args:
        spec: the model.
        shares: fraction of all tokens that each routed expert gets, float64 [E] per layer.
    """
    experts = [tensor for tensor in spec.tensors.values() if tensor.expert is not None]
    active = float(parameters(spec) - sum(tensor.elements for tensor in experts))
    for tensor in experts:
        assert tensor.layer is not None
        assert tensor.expert is not None
        active += tensor.elements * float(shares[tensor.layer][tensor.expert])
    return active
