"""Use of the experts by documents: tokens that each gets, and the routers' mean probability of it.

Legend: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.tuning.forward import run_packed
from moe_export.tuning.packing import PackedBatch


@dataclass
class Usage:
    """Sums of a layer over tokens.

    Attributes:
        tokens: Number of tokens.
        sent_E: Number of them that each expert got, float64.
        share_E: Sum of the softmax that experts are chosen by, float64.
    """

    tokens: int
    sent_E: Tensor
    share_E: Tensor

    @property
    def load(self) -> tuple[float, ...]:
        """Share of the tokens that each expert got."""
        return tuple((self.sent_E / self.tokens).tolist())

    def probability(self, experts: Iterable[int]) -> tuple[float, ...]:
        """Mean probability of some experts."""
        return tuple(float(self.share_E[expert]) / self.tokens for expert in experts)


def usage_of(model: nn.Module, batches: Iterable[PackedBatch]) -> dict[int, Usage]:
    """Use of the experts of each layer by the real tokens of batches.

    Args:
        model: Model in evaluation mode.
        batches: Packed documents.
    """
    found: dict[int, Usage] = {}
    is_real_T = torch.zeros(0)

    def count(block: RaggedMoEBlock, args: tuple[Tensor, ...]) -> None:
        x_TD = args[0].reshape(-1, args[0].shape[-1])[is_real_T]
        experts = len(block.routed)
        expert_N = block.route(x_TD)[1].reshape(-1)
        sent_E = torch.bincount(expert_N, minlength=experts)[:experts].double()
        share_E = block.choice_shares(x_TD).double().sum(0)
        zero = Usage(0, torch.zeros_like(sent_E), torch.zeros_like(share_E))
        last = found.get(block.layer, zero)
        found[block.layer] = Usage(
            last.tokens + len(x_TD), last.sent_E + sent_E, last.share_E + share_E
        )

    blocks = [module for module in model.modules() if isinstance(module, RaggedMoEBlock)]
    handles = [block.register_forward_pre_hook(count) for block in blocks]
    try:
        with torch.no_grad():
            for batch in batches:
                is_real_T = batch.is_real_RL.reshape(-1)
                run_packed(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
