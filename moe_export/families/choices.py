"""Choices of a model that take several numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentAttention:
    """Sizes of attention whose keys and values come from a small latent vector (DeepSeek's MLA).

    Attributes:
        query_rank: size of the latent that queries come from, 0 if they come from the input.
        key_rank: size of the latent that keys and values come from.
        rope_dim: entries of a head that are rotated; for keys, all heads have the same.
        nope_dim: entries of a head that are not.
        value_dim: entries of a head's value.
    """

    query_rank: int
    key_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True)
class ExpertGroups:
    """Routing that first chooses groups of experts, by the best of each, and then among those.

    Attributes:
        count: groups of as many neighbouring experts.
        kept: how many of them are chosen for a token.
    """

    count: int
    kept: int
