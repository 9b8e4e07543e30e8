"""Routing: the choice of experts for each token and their weights, in evaluation mode.

Legend: T tokens, E experts, K top-k, G groups, N experts of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_export.families.base import ModelSpec
from moe_export.families.features import ExpertGroups
from moe_export.torch_model.condensers import Condensed


def route(
    logits_TE: Tensor,
    spec: ModelSpec,
    bias_E: Tensor | None = None,
    condensed: Condensed | None = None,
) -> tuple[Tensor, Tensor]:
    """Routing weights and numbers of each token's experts, both [T, K], by the family's rule.

    With condensers there are more columns, and the number E stands for no expert; its weight is 0.

    Args:
        logits_TE: Logits of the router.
        spec: Sizes and routing of the model.
        bias_E: Bias of the choice; None in families without one.
        condensed: Bias and condensers of the layer; None without a router bias.
    """
    routing, top_k = spec.family.routing, spec.chosen_experts
    choice_TE = logits_TE if condensed is None else condensed.choice_logits(logits_TE)
    if routing.score == "sparsemixer":
        weight_TK, expert_TK = sparse_mixer(choice_TE, spec.router_jitter, top_k)
    elif routing.score == "sigmoid":
        weight_TK, expert_TK = sigmoid_top_k(choice_TE, top_k, spec.groups, bias_E)
    else:
        weight_TK, expert_TK = softmax_top_k(choice_TE, top_k, spec.groups)
    if condensed is not None:
        weight_TK, expert_TK = condensed.appended(logits_TE, weight_TK, expert_TK)
    if spec.normalize_top_k:
        total_T1 = weight_TK.sum(dim=-1, keepdim=True) + routing.total_epsilon
        weight_TK = weight_TK / total_T1
    if spec.routing_scale != 1:
        weight_TK = weight_TK * spec.routing_scale
    return weight_TK, expert_TK


def softmax_top_k(
    logits_TE: Tensor, top_k: int, groups: ExpertGroups | None
) -> tuple[Tensor, Tensor]:
    """Softmax over all experts in at least float32, then the K largest in the chosen groups."""
    scores_TE = torch.softmax(logits_TE, dim=-1, dtype=_wide(logits_TE))
    if groups is not None:
        best_TG = scores_TE.unflatten(-1, (groups.count, -1)).amax(-1)
        scores_TE = scores_TE * _chosen_groups(best_TG, groups, logits_TE.shape[-1])
    weight_TK, expert_TK = torch.topk(scores_TE, top_k, dim=-1)
    return weight_TK, expert_TK


def sigmoid_top_k(
    logits_TE: Tensor, top_k: int, groups: ExpertGroups | None, bias_E: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sigmoid of every logit in at least float32; experts are chosen by score plus bias.

    Weights are scores without bias.
    Source: DeepSeek-V3 (https://arxiv.org/abs/2412.19437, section 2.1.2).
    """
    scores_TE = torch.sigmoid(logits_TE.to(_wide(logits_TE)))
    expert_TK = torch.topk(_biased(scores_TE, groups, bias_E), top_k, dim=-1).indices
    return scores_TE.gather(-1, expert_TK), expert_TK


def choice_scores(logits_TE: Tensor, spec: ModelSpec, bias_E: Tensor | None) -> Tensor:
    """Numbers [T, E] of which the largest decide the choice of experts; -inf for those out of it.

    They are the logits, except where a bias is added to sigmoids. Groups that are chosen by their
    single best expert are left out of account.
    """
    if spec.family.routing.score != "sigmoid":
        return logits_TE
    return _biased(torch.sigmoid(logits_TE.to(_wide(logits_TE))), spec.groups, bias_E)


def _biased(scores_TE: Tensor, groups: ExpertGroups | None, bias_E: Tensor | None) -> Tensor:
    """Scores plus bias [T, E]; -inf outside the groups whose two best sums have most."""
    choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if groups is None:
        return choice_TE
    choice_TGN = choice_TE.unflatten(-1, (groups.count, -1))
    best_TG = torch.topk(choice_TGN, 2, dim=-1).values.sum(-1)
    mask_TE = _chosen_groups(best_TG, groups, scores_TE.shape[-1])
    return choice_TE.masked_fill(mask_TE == 0, -torch.inf)


def _wide(logits_TE: Tensor) -> torch.dtype:
    return torch.promote_types(logits_TE.dtype, torch.float32)


def _chosen_groups(best_TG: Tensor, groups: ExpertGroups, experts: int) -> Tensor:
    """Mask [T, E]: one for the experts of the groups with the best scores, else zero."""
    chosen = torch.topk(best_TG, groups.kept, dim=-1).indices
    mask_TG = torch.zeros_like(best_TG).scatter(-1, chosen, 1.0)
    return mask_TG.repeat_interleave(experts // groups.count, dim=-1)


def sparse_mixer(logits_TE: Tensor, jitter: float, top_k: int = 2) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the two largest logits; each weight counts only logits close to it.

    With s the logits, e1 the largest and e2 the next:
        weight[i] = exp(s[ei]) / sum of exp(s[e]) over e with (s[ei] - s[e]) / max(|s[e]|, s[ei])
            <= 2 * jitter, for e2 without e1
    With `top_k` 1, only the first is taken.
    Source: Phi-3.5-MoE, SparseMixer-v2 (https://arxiv.org/abs/2409.12136), in evaluation.
    """
    top_TK, expert_TK = torch.topk(logits_TE, top_k, dim=-1)
    rivals_TE = logits_TE
    weights = []
    for choice in range(top_k):
        best_T1 = top_TK[:, choice, None]
        distance_TE = (best_T1 - logits_TE) / torch.maximum(logits_TE.abs(), best_T1)
        near_TE = rivals_TE.masked_fill(distance_TE > 2 * jitter, -torch.inf)
        chosen_T1 = expert_TK[:, choice, None]
        weights.append(torch.softmax(near_TE, dim=-1).gather(-1, chosen_T1))
        rivals_TE = rivals_TE.scatter(-1, chosen_T1, -torch.inf)
    return torch.cat(weights, dim=-1), expert_TK
