"""Router gradients from all experts, for `method: dense_mixer`.

With p the softmax of the router's logits, w the routing weights and o[e] the output of an expert:

    dense  = sum over all e of p[e] * o[e], where o[e] is constant unless e is chosen
    output = constant(sum over the chosen e of w[e] * o[e]) + dense - constant(dense)

So the value is that of the model, an expert learns from its own tokens alone, and the router from
what every expert would have said. Each step computes all experts for all tokens.
Source: DenseMixer (https://github.com/yaof20/DenseMixer).

Legend: T tokens, E experts, K top-k, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from moe_export.torch_model.block import RaggedMoEBlock, SwiGlu


@contextmanager
def mixed_densely(model: nn.Module) -> Iterator[None]:
    """Gives the routers of a model gradients from all experts in a `with` block."""
    blocks = [module for module in model.modules() if isinstance(module, RaggedMoEBlock)]
    for block in blocks:
        # An attribute of the instance is found before the method of the class.
        block.__dict__["_routed_output"] = lambda x_TD, block=block: _output(block, x_TD)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["_routed_output"]


def _output(block: RaggedMoEBlock, x_TD: Tensor) -> Tensor:
    with torch.no_grad():
        sparse_TD = RaggedMoEBlock._routed_output(block, x_TD)  # noqa: SLF001 - the method replaced
        _, expert_TK = block.route(x_TD)
    share_TE = torch.softmax(block.router_logits(x_TD), dim=-1)
    dense_TD = torch.zeros_like(x_TD)
    for number, expert in enumerate(block.routed):
        chosen_N = (expert_TK == number).any(-1).nonzero()[:, 0]
        dense_TD = dense_TD + share_TE[:, number, None] * _said(expert, x_TD, chosen_N)
    return sparse_TD + (dense_TD - dense_TD.detach())


def _said(expert: SwiGlu, x_TD: Tensor, chosen_N: Tensor) -> Tensor:
    """Output [T, D] of an expert for all tokens, constant for those that did not choose it."""
    with torch.no_grad():
        output_TD = expert.forward(x_TD, lambda _, value: value)
    if not len(chosen_N):
        return output_TD
    return output_TD.index_copy(0, chosen_N, expert.forward(x_TD[chosen_N], lambda _, value: value))
