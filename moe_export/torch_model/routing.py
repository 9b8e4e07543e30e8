"""Routing: the choice of experts for each token and their weights, in evaluation mode.

Legend: T tokens, E experts, K top-k, G groups, N experts of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_export.families.base import ModelSpec
from moe_export.families.features import ExpertGroups


def route(logits_TE: Tensor, spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Routing weights and numbers of each token's experts, both [T, K], by the family's rule."""
    if spec.family.routing == "sparsemixer":
        weight_TK, expert_TK = sparse_mixer(logits_TE, spec.router_jitter)
    else:
        weight_TK, expert_TK = softmax_top_k(logits_TE, spec.top_k, spec.groups)
    if spec.normalize_top_k:
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
    if spec.routing_scale != 1:
        weight_TK = weight_TK * spec.routing_scale
    return weight_TK, expert_TK


def softmax_top_k(
    logits_TE: Tensor, top_k: int, groups: ExpertGroups | None
) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in at least float32, then the K largest in the chosen groups."""
    dtype = torch.promote_types(logits_TE.dtype, torch.float32)
    scores_TE = torch.softmax(logits_TE, dim=-1, dtype=dtype)
    if groups is not None:
        scores_TGN = scores_TE.unflatten(-1, (groups.count, -1))
        chosen = torch.topk(scores_TGN.amax(-1), groups.kept, dim=-1).indices
        mask_TG = torch.zeros_like(scores_TGN[..., 0]).scatter(-1, chosen, 1.0)
        scores_TE = (scores_TGN * mask_TG[..., None]).flatten(-2)
    weight_TK, expert_TK = torch.topk(scores_TE, top_k, dim=-1)
    return weight_TK, expert_TK


def sparse_mixer(logits_TE: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the two largest logits; each weight counts only logits close to it.

    With s the logits, e1 the largest and e2 the next:
        weight[i] = exp(s[ei]) / sum of exp(s[e]) over e with (s[ei] - s[e]) / max(|s[e]|, s[ei])
            <= 2 * jitter, for e2 without e1
    Source: Phi-3.5-MoE, SparseMixer-v2 (https://arxiv.org/abs/2409.12136), in evaluation.
    """
    top_T2, expert_T2 = torch.topk(logits_TE, 2, dim=-1)
    rivals_TE = logits_TE
    weights = []
    for choice in range(2):
        best_T1 = top_T2[:, choice, None]
        distance_TE = (best_T1 - logits_TE) / torch.maximum(logits_TE.abs(), best_T1)
        near_TE = rivals_TE.masked_fill(distance_TE > 2 * jitter, -torch.inf)
        chosen_T1 = expert_T2[:, choice, None]
        weights.append(torch.softmax(near_TE, dim=-1).gather(-1, chosen_T1))
        rivals_TE = rivals_TE.scatter(-1, chosen_T1, -torch.inf)
    return torch.cat(weights, dim=-1), expert_T2
