"""Compressed experts: vectors of the last experts of a token scale those that are computed.

With w the routing weights of the last n of a token's K experts, and v the vectors of expert e:

    share[e] = w[e] / sum of w over the n experts, or 0 if the sum is 0
    scale    = 1 + sum over the n experts of share[e] * (v[e] - 1)

which is the weighted mean of the vectors, and exactly 1 for vectors of ones. A computed expert is
then down(scale_h * (silu(gate(scale_x * x)) * up(scale_up * x))).
Source: Compressed Experts (https://arxiv.org/abs/2503.00634, section 2.2).

Legend: T tokens, E experts, M computed experts, A auxiliary ones, D hidden, W width before pruning,
X length of a vector, N tokens of an expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vectors:
    """Vectors of all experts of a layer, float32.

    Attributes:
        input_ED: Vectors for the input of gate, and of up unless it has its own.
        hidden_EW: Vectors for the hidden values; None if these are not scaled.
        up_ED: Vectors for the input of up; None if it reads that of gate.
    """

    input_ED: Tensor
    hidden_EW: Tensor | None
    up_ED: Tensor | None

    def scales(self, weight_TA: Tensor, expert_TA: Tensor) -> Scales:
        """Scales of tokens with the given auxiliary experts.

        Args:
            weight_TA: Routing weights of the auxiliary experts.
            expert_TA: Their numbers.
        """
        weight_TA = weight_TA.to(self.input_ED.dtype)
        total_T1 = weight_TA.sum(-1, keepdim=True)
        share_TA = weight_TA / total_T1.masked_fill(total_T1 == 0, 1.0)

        def mean(table_EX: Tensor | None) -> Tensor | None:
            if table_EX is None:
                return None
            return 1 + torch.einsum("ta,tax->tx", share_TA, table_EX[expert_TA] - 1)

        return Scales(mean(self.input_ED), mean(self.hidden_EW), mean(self.up_ED))


@dataclass(frozen=True)
class Scales:
    """Factors of the input and of the hidden values of tokens, float32.

    Attributes:
        input_ND: Factors of the input of gate, and of up unless it has its own; None for none.
        hidden_NW: Factors of the hidden values; None for none.
        up_ND: Factors of the input of up; None if it reads that of gate.
    """

    input_ND: Tensor | None = None
    hidden_NW: Tensor | None = None
    up_ND: Tensor | None = None

    def of(self, token_N: Tensor, unit_W: Tensor | None = None) -> Scales:
        """Scales of some tokens, for an expert that keeps some hidden values.

        Args:
            token_N: Positions of the tokens, int64.
            unit_W: Positions before pruning of the hidden values, int64; None for all of them.
        """

        def rows(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[token_N]

        hidden = rows(self.hidden_NW)
        if hidden is not None and unit_W is not None:
            hidden = hidden[:, unit_W]
        return Scales(rows(self.input_ND), hidden, rows(self.up_ND))


UNSCALED = Scales()
"""Scales of an expert without vectors: none."""


def scaled(x_ND: Tensor, scale_ND: Tensor | None) -> Tensor:
    """Product of values with their scales, in the dtype of the values; the values if None."""
    return x_ND if scale_ND is None else (x_ND * scale_ND).to(x_ND.dtype)
