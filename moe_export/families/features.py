"""Features that differ between families: routing, latent attention, expert groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mixer = Literal["attention", "latent_attention", "short_convolution", "delta_net"]
"""Kind of the block of a layer that moves information between tokens."""

VECTOR_ROLES = ("compressed_input", "compressed_hidden", "compressed_up")
"""Roles of the vectors of compressed experts: of the input, the hidden values, and up's input."""

UNITS_ROLE = "compressed_units"
"""Role of the positions before pruning of the hidden values of compressed experts."""


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

    @property
    def cached_dim(self) -> int:
        """Number of entries that the cache holds of a token: rotated key and latent vector."""
        return self.rope_dim + self.key_rank

    @property
    def half_dim(self) -> int:
        """Half of them: the cache has two tensors."""
        return self.cached_dim // 2


@dataclass(frozen=True)
class DeltaNet:
    """Sizes of a gated delta net.

    Attributes:
        key_heads: Number of heads of queries and keys.
        value_heads: Number of heads of values, a multiple of it; each has a memory of its own.
        key_dim: Number of entries of a head's key.
        value_dim: Number of entries of a head's value.
        taps: Number of tokens that the convolution before it sees.
        is_grouped: True if one matrix gives queries, keys, values and gates, in groups of key heads
            with their value heads; False if queries, keys and values lie side by side.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int
    is_grouped: bool

    @property
    def channels(self) -> int:
        """Number of entries of all queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True)
class Routing:
    """Rule by which a token's experts are chosen and weighed.

    Attributes:
        score: Function of the router's logits: softmax over all experts, sigmoid of each, or
            Phi-MoE's sparse mixer.
        has_choice_bias: True if a stored bias is added to the scores for the choice of experts, and
            not for their weights.
        group_score: Score of a group of experts: that of its best expert, or the sum of its best
            two.
        total_epsilon: Number added to the sum of the chosen scores that weights are divided by.
    """

    score: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    has_choice_bias: bool = False
    group_score: Literal["best", "best_two"] = "best"
    total_epsilon: float = 0.0


CompressedForm = Literal["input", "tied", "three"]
"""Vectors of a compressed expert: one for the input of gate and up; another one for the hidden
values; and a third one, so that gate and up have one each."""


@dataclass(frozen=True)
class CompressedExperts:
    """Experts per token that are not computed; their vectors scale the other ones instead.

    Source: Compressed Experts (https://arxiv.org/abs/2503.00634, section 2.2).

    Attributes:
        auxiliary: Number of such experts: the last ones in the router's order.
        form: Vectors that every expert has.
        width: Length of the vector for hidden values: the width of an expert before pruning.
    """

    auxiliary: int
    form: CompressedForm
    width: int


@dataclass(frozen=True)
class Condensers:
    """Stored bias of the router's logits, and experts that every token gets.

    Attributes:
        experts: Numbers of the experts that every token gets, ascending, one tuple per layer; as
            many in each layer with experts.
        kept_budget: True if they take the place of as many chosen experts; False if they are added.
        bias_in_weights: True if the bias counts for the weights; False if it is for the choice
            alone.
    """

    experts: tuple[tuple[int, ...], ...]
    kept_budget: bool
    bias_in_weights: bool

    @property
    def count(self) -> int:
        """Number of experts that every token gets in a layer with experts."""
        return max(map(len, self.experts))


@dataclass(frozen=True)
class ExpertGroups:
    """Routing that first chooses groups by their best experts, then experts within these groups.

    Attributes:
        count: Number of groups, each of equally many neighbouring experts.
        kept: Number of groups chosen for a token.
    """

    count: int
    kept: int
