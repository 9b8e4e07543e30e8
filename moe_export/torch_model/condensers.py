"""Bias of a router's logits, and experts that every token gets beside those it chooses.

With z the logits and b the bias, experts are chosen by softmax(z + b), which also gives their
weights, or softmax(z) does where the bias is for the choice alone. A condenser's weight is its own
share of that softmax. A condenser that is chosen anyway counts once.
Source: ExpertCondenser (https://github.com/HectorHHZ/ExpertCondenser).

Legend: T tokens, E experts, K chosen experts, C condensers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Condensed:
    """Bias and condensers of one layer.

    Attributes:
        bias_E: Bias of the logits, float32.
        experts: Numbers of the condensers.
        in_weights: True if the bias counts for the weights too.
    """

    bias_E: Tensor
    experts: tuple[int, ...]
    in_weights: bool

    def choice_logits(self, logits_TE: Tensor) -> Tensor:
        """Logits [T, E] that experts are chosen by, in at least float32."""
        return logits_TE + self.bias_E

    def shares(self, logits_TE: Tensor) -> Tensor:
        """Softmax [T, E] that weights are taken from, in at least float32."""
        if self.in_weights:
            logits_TE = self.choice_logits(logits_TE)
        wide = torch.promote_types(logits_TE.dtype, torch.float32)
        return torch.softmax(logits_TE, dim=-1, dtype=wide)

    def appended(
        self, logits_TE: Tensor, weight_TK: Tensor, expert_TK: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights and experts [T, K + C] of the chosen experts and the condensers.

        A condenser among a token's chosen experts is replaced by the number E with the weight 0.

        Args:
            logits_TE: Logits of the router, without the bias.
            weight_TK: Weights of the chosen experts, by the biased logits.
            expert_TK: Numbers of the chosen experts.
        """
        if not self.experts and self.in_weights:
            return weight_TK, expert_TK
        share_TE = self.shares(logits_TE)
        if not self.in_weights:
            weight_TK = share_TE.gather(-1, expert_TK)
        expert_C = torch.tensor(self.experts, dtype=torch.int64, device=expert_TK.device)
        is_chosen_TC = (expert_TK[:, :, None] == expert_C).any(1)
        weight_TC = share_TE[:, expert_C].masked_fill(is_chosen_TC, 0.0)
        nobody = torch.full_like(is_chosen_TC, logits_TE.shape[-1], dtype=torch.int64)
        expert_TC = torch.where(is_chosen_TC, nobody, expert_C)
        return torch.cat((weight_TK, weight_TC), -1), torch.cat((expert_TK, expert_TC), -1)
