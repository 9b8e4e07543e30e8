"""Gradients of the losses with respect to the last hidden states, without autograd.

Legend: T target positions, D hidden, V vocab.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from moe_export.scores.base import Loss

CHUNK_BYTES = 1 << 27
"""Logits that are in memory at one time, in float32, of which there are about four copies: 220
target positions at a vocabulary of 152 k."""


def loss_gradients(
    hidden_TD: Tensor, head: nn.Linear, gold_T: Tensor, weight_T: Tensor, losses: Collection[Loss]
) -> dict[Loss, Tensor]:
    """Gradient of sum over t of weight[t] * loss[t], for each loss; see `scores.base.Loss`.

    With p the softmax of the logits over the tokens that the loss counts (all, or all but gold),
    the gradient of a token's loss with respect to its logits is p less 1 at gold. Written out like
    this both losses share the logits, which are never held for more than `CHUNK_BYTES` at once.

    Args:
        hidden_TD: last hidden states, after the final norm.
        head: maps them to logits.
        gold_T: int64, the token that follows each position.
        weight_T: 1 / (targets of the sequence), float32.
        losses: which.

    Returns:
        [T, D] in the dtype of `hidden_TD`, for each loss.
    """
    chunk = max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))
    gradients: dict[Loss, list[Tensor]] = {loss: [] for loss in losses}
    with torch.no_grad():
        for start in range(0, len(gold_T), chunk):
            part = slice(start, start + chunk)
            gold = gold_T[part, None]
            logits_TV = head(hidden_TD[part])
            logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
            for loss, chunks in gradients.items():
                counted = logits_TV
                if loss == "margin":
                    counted = logits_TV.scatter(1, gold, -torch.inf)
                slope_TV = torch.softmax(counted, dim=-1)
                slope_TV.scatter_add_(1, gold, slope_TV.new_full(gold.shape, -1))
                slope_TV *= weight_T[part, None]
                chunks.append(slope_TV.to(hidden_TD.dtype) @ head.weight)
    return {loss: torch.cat(chunks) for loss, chunks in gradients.items()}
