"""Features of a model that only some families have: latent attention, expert groups."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatentAttention:
    """Sizes of attention whose keys and values come from a small latent vector (DeepSeek's MLA).

    Attributes:
        query_rank: Size of the latent vector of queries; 0 if queries come from the input.
        key_rank: Size of the latent vector of keys and values.
        rope_dim: Number of rotated entries of a head; all key heads share them.
        nope_dim: Number of entries of a head that are not rotated.
        value_dim: Number of entries of a head's value.
    """

    query_rank: int
    key_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True)
class ExpertGroups:
    """Routing that first chooses groups by their best expert, then experts within these groups.

    Attributes:
        count: Number of groups, each of equally many neighbouring experts.
        kept: Number of groups chosen for a token.
    """

    count: int
    kept: int
