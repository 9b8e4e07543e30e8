"""Refit of `down` of pruned experts, which compensates for the removed dimensions.

With p the routing weight of a token t at expert e, h the values of the expert's P kept dimensions,
and y the wanted output of the block (see `block_data`), the refitted matrices minimise

    sum over t of w |sum over e of p down'_e h - y|²
        + ridge * sum over e of mean diag(G_e) * |down'_e - down_e|²

with G_e = sum over t of w p² h hᵀ and w the token's weight. The minimum is approached expert by
expert (block Gauss-Seidel), so that only one G is in memory. After GRAIL, arXiv:2602.23795, which
knows one expert, pulls towards zero instead, and has no weights.

Legend: T tokens, D hidden, P kept dimensions, N tokens routed to an expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_export.fitting.block_data import BlockData
from moe_export.fitting.compact import hidden
from moe_export.fitting.limits import SWEEPS
from moe_export.torch_model.block import RaggedMoEBlock, SwiGlu

TOKENS_PER_DIMENSION = 2
"""Least number of tokens per kept dimension; an expert with fewer is not fitted."""

TOKENS_AT_ONCE = 8192
"""Number of tokens of an expert that are computed at a time, which limits memory."""


@dataclass(frozen=True)
class ExpertTokens:
    """Tokens of one expert.

    Attributes:
        number: Number of the expert in its layer; the shared one follows the last routed one.
        swiglu: Weights of the expert.
        token_N: Positions of its tokens among all, int64.
        routing_N: Routing weight of each, or weight of the shared expert.
    """

    number: int
    swiglu: SwiGlu
    token_N: Tensor
    routing_N: Tensor

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions and routing weights of at most `TOKENS_AT_ONCE` tokens at a time."""
        yield from zip(
            self.token_N.split(TOKENS_AT_ONCE), self.routing_N.split(TOKENS_AT_ONCE), strict=True
        )

    def is_enough(self) -> bool:
        """True if the expert keeps dimensions and has enough tokens to be fitted."""
        width: int = self.swiglu.down.weight.shape[1]
        return width > 0 and len(self.token_N) >= TOKENS_PER_DIMENSION * width


def tokens_by_expert(block: RaggedMoEBlock, x_TD: Tensor) -> list[ExpertTokens]:
    """Tokens of every expert of a block, the shared one last if there is one."""
    weight_TK, expert_TK = block.route(x_TD)
    experts = []
    for number, swiglu in enumerate(block.routed):
        token_N, place_N = torch.nonzero(expert_TK == number, as_tuple=True)
        experts.append(ExpertTokens(number, swiglu, token_N, weight_TK[token_N, place_N]))
    if block.shared is not None:
        weight_T = block.shared_weight(x_TD)[:, 0]
        everyone_T = torch.arange(len(x_TD))
        experts.append(ExpertTokens(len(experts), block.shared[0], everyone_T, weight_T))
    return experts


def refit_down(
    block: RaggedMoEBlock, data: BlockData, fitted: frozenset[int], ridge: float
) -> None:
    """Refits `down` of some experts of a block, in place.

    Args:
        block: Block with only the kept dimensions.
        data: Inputs and wanted outputs.
        fitted: Numbers of the experts to refit.
        ridge: Strength of the pull towards the weights that the block has, see the formula above.
    """
    with torch.no_grad():
        experts = tokens_by_expert(block, data.x_TD)
        missing_TD = data.wanted_TD.clone()
        for expert in experts:
            _subtract(expert, data.x_TD, missing_TD, expert.swiglu.down.weight)
        chosen = [expert for expert in experts if expert.number in fitted]
        anchors = [expert.swiglu.down.weight.clone() for expert in chosen]
        for _ in range(SWEEPS):
            for expert, anchor_DP in zip(chosen, anchors, strict=True):
                _solve(expert, data, missing_TD, anchor_DP, ridge)


def _solve(
    expert: ExpertTokens, data: BlockData, missing_TD: Tensor, anchor_DP: Tensor, ridge: float
) -> None:
    """Sets one expert's `down` to its minimum with all others held, and `missing_TD` with it."""
    down = expert.swiglu.down.weight
    gram_PP = torch.zeros(down.shape[1], down.shape[1], dtype=torch.float64)
    right_DP = torch.zeros(down.shape, dtype=torch.float64)
    for token_N, routing_N in expert.parts():
        root_N1 = data.weight_T[token_N].sqrt()[:, None]
        h_NP = hidden(expert.swiglu, data.x_TD[token_N]) * (routing_N[:, None] * root_N1)
        gram_PP += h_NP.T @ h_NP
        right_DP += (missing_TD[token_N] * root_N1).T @ h_NP
    # The small constant keeps an expert unchanged whose values are all zero on these tokens.
    pull = ridge * float(gram_PP.diagonal().mean()) + 1e-30
    right_DP += down.double() @ gram_PP + pull * anchor_DP.double()
    gram_PP.diagonal().add_(pull)
    solved_DP = torch.linalg.solve(gram_PP, right_DP.T).T.float()
    _subtract(expert, data.x_TD, missing_TD, solved_DP - down)
    down.copy_(solved_DP)


def _subtract(expert: ExpertTokens, x_TD: Tensor, missing_TD: Tensor, down_DP: Tensor) -> None:
    """Subtracts an expert's output with the given `down` from what is missing, in place."""
    for token_N, routing_N in expert.parts():
        h_NP = hidden(expert.swiglu, x_TD[token_N]) * routing_N[:, None]
        missing_TD.index_add_(0, token_N, h_NP @ down_DP.T, alpha=-1)
