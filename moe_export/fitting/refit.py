"""Refit of `down` of pruned experts, which compensates for the removed dimensions.

With p the routing weight of a token t at expert e, h the values of the expert's P kept dimensions,
and y the wanted output of the block (see `block_data`), the refitted matrices minimise

    sum over t of w |sum over e of p down'_e h - y|²
        + ridge * sum over e of mean diag(G_e) * |down'_e - down_e|²

with G_e = sum over t of w p² h hᵀ and w the token's weight. All experts are solved together if they
keep at most `DIMENSIONS_AT_ONCE` dimensions. Otherwise the minimum is approached expert by expert
(block Gauss-Seidel), so that the second moments of only one are in memory. After GRAIL,
arXiv:2602.23795, which knows one expert, pulls towards zero instead, and has no weights.

Legend: T tokens, D hidden, P kept dimensions of a group of experts, N tokens routed to one of
them, M those of one expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_export.fitting.block_data import BlockData
from moe_export.fitting.compact import hidden
from moe_export.fitting.limits import DIMENSIONS_AT_ONCE, SWEEPS
from moe_export.torch_model.block import RaggedMoEBlock, SwiGlu
from moe_export.torch_model.compressed import UNSCALED, Scales

TOKENS_PER_DIMENSION = 2
"""Least number of tokens per kept dimension; an expert with fewer is not fitted."""

TOKENS_AT_ONCE = 8192
"""Number of tokens that are computed at a time, which limits memory."""


@dataclass(frozen=True)
class ExpertTokens:
    """Tokens of one expert.

    Attributes:
        number: Number of the expert in its layer; the shared one follows the last routed one.
        swiglu: Weights of the expert.
        token_N: Positions of its tokens among all, int64.
        routing_N: Routing weight of each, or weight of the shared expert.
        scales: Factors of all tokens by their compressed experts; none for the shared expert.
        unit_W: Columns of the factors that the expert's hidden values have; None for all.
    """

    number: int
    swiglu: SwiGlu
    token_N: Tensor
    routing_N: Tensor
    scales: Scales = UNSCALED
    unit_W: Tensor | None = None

    def hidden(self, x_TD: Tensor, token_N: Tensor) -> Tensor:
        """Values [N, P] of the kept dimensions at some tokens, before the routing weight."""
        return hidden(self.swiglu, x_TD[token_N], self.scales.of(token_N, self.unit_W))

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions and routing weights of at most `TOKENS_AT_ONCE` tokens at a time."""
        yield from zip(
            self.token_N.split(TOKENS_AT_ONCE), self.routing_N.split(TOKENS_AT_ONCE), strict=True
        )

    @property
    def width(self) -> int:
        """Number of kept dimensions."""
        return int(self.swiglu.down.weight.shape[1])

    def is_enough(self) -> bool:
        """True if the expert keeps dimensions and has enough tokens to be fitted."""
        return self.width > 0 and len(self.token_N) >= TOKENS_PER_DIMENSION * self.width


def tokens_by_expert(block: RaggedMoEBlock, x_TD: Tensor) -> list[ExpertTokens]:
    """Tokens of every expert of a block, the shared one last if there is one."""
    weight_TK, expert_TK, scales = block.routed_and_scaled(x_TD)
    experts = []
    for number, swiglu in enumerate(block.routed):
        token_N, place_N = torch.nonzero(expert_TK == number, as_tuple=True)
        weight_N = weight_TK[token_N, place_N]
        experts.append(ExpertTokens(number, swiglu, token_N, weight_N, scales, block.units(number)))
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
        groups = grouped([expert for expert in experts if expert.number in fitted])
        anchors = [_down(group).clone() for group in groups]
        for _ in range(SWEEPS if len(groups) > 1 else 1):
            for group, anchor_DP in zip(groups, anchors, strict=True):
                _solve(group, data, missing_TD, anchor_DP, ridge)


def grouped(experts: list[ExpertTokens]) -> list[list[ExpertTokens]]:
    """Groups of experts that are solved together: one of all if it is small, or one of each."""
    if sum(expert.width for expert in experts) <= DIMENSIONS_AT_ONCE:
        return [experts]
    return [[expert] for expert in experts]


def _solve(
    group: list[ExpertTokens], data: BlockData, missing_TD: Tensor, anchor_DP: Tensor, ridge: float
) -> None:
    """Sets the group's `down` to its minimum with all others held, and `missing_TD` with it."""
    down_DP = _down(group)
    gram_PP = torch.zeros(down_DP.shape[1], down_DP.shape[1], dtype=torch.float64)
    right_DP = torch.zeros(down_DP.shape, dtype=torch.float64)
    reached_N = torch.cat([expert.token_N for expert in group]).unique()
    for token_N in reached_N.split(TOKENS_AT_ONCE):
        root_N1 = data.weight_T[token_N].sqrt()[:, None]
        h_NP = _values(group, data.x_TD, token_N) * root_N1
        gram_PP += h_NP.T @ h_NP
        right_DP += (missing_TD[token_N] * root_N1).T @ h_NP
    widths = [expert.width for expert in group]
    # The small constant keeps an expert unchanged whose values are all zero on these tokens.
    pulls = [ridge * part.mean() + 1e-30 for part in gram_PP.diagonal().split(widths)]
    pull_P = torch.stack(pulls).repeat_interleave(torch.tensor(widths))
    right_DP += down_DP.double() @ gram_PP + pull_P * anchor_DP.double()
    gram_PP.diagonal().add_(pull_P)
    solved_DP = torch.linalg.solve(gram_PP, right_DP.T).T.float()
    for expert, part_DP in zip(group, solved_DP.split(widths, dim=1), strict=True):
        _subtract(expert, data.x_TD, missing_TD, part_DP - expert.swiglu.down.weight)
        expert.swiglu.down.weight.copy_(part_DP)


def _down(group: list[ExpertTokens]) -> Tensor:
    """Matrices `down` [D, P] of a group side by side."""
    return torch.cat([expert.swiglu.down.weight for expert in group], dim=1)


def _values(group: list[ExpertTokens], x_TD: Tensor, token_N: Tensor) -> Tensor:
    """Values [N, P] of a group times routing weights; zero where a token goes elsewhere."""
    h_NP = torch.zeros(len(token_N), sum(expert.width for expert in group))
    for expert, part_NP in zip(group, h_NP.split([e.width for e in group], dim=1), strict=True):
        is_here_M = torch.isin(expert.token_N, token_N)
        own_M, routing_M = expert.token_N[is_here_M], expert.routing_N[is_here_M]
        h_MP = expert.hidden(x_TD, own_M) * routing_M[:, None]
        part_NP.index_copy_(0, torch.searchsorted(token_N, own_M), h_MP)
    return h_NP


def _subtract(expert: ExpertTokens, x_TD: Tensor, missing_TD: Tensor, down_DP: Tensor) -> None:
    """Subtracts an expert's output with the given `down` from what is missing, in place."""
    for token_N, routing_N in expert.parts():
        h_NP = expert.hidden(x_TD, token_N) * routing_N[:, None]
        missing_TD.index_add_(0, token_N, h_NP @ down_DP.T, alpha=-1)
