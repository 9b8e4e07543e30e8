"""Losses of packed documents.

Legend: R rows, L positions, N scored positions, D hidden, V vocab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from moe_export.tuning.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run_packed(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Last hidden states [R, L, D], after the final norm."""
    output: Tensor = model.base_model(
        input_ids=batch.input_RL,
        attention_mask=batch.attention_mask(),
        position_ids=batch.position_RL,
        use_cache=False,
    )[0]
    return output


def loss_of(
    model: PreTrainedModel, batch: PackedBatch, teacher: PreTrainedModel | None = None
) -> Tensor:
    """Sum over the positions of a batch of the weighted loss in nats, which has a gradient.

    Args:
        model: Model that is trained.
        batch: Packed documents.
        teacher: Model whose distribution is the goal; the next tokens are if it is None.
    """
    scored_RL = batch.weight_RL > 0
    weight_N, label_N = batch.weight_RL[scored_RL], batch.label_RL[scored_RL]
    logits_NV = _logits(model, batch, scored_RL)
    if teacher is None:
        return (F.cross_entropy(logits_NV, label_N, reduction="none") * weight_N).sum()
    with torch.no_grad():
        goal_NV = _logits(teacher, batch, scored_RL).log_softmax(-1)
    ours_NV = logits_NV.log_softmax(-1)
    kl_N = F.kl_div(ours_NV, goal_NV, reduction="none", log_target=True).sum(-1)
    return (kl_N * weight_N).sum()


def _logits(model: PreTrainedModel, batch: PackedBatch, scored_RL: Tensor) -> Tensor:
    logits_NV: Tensor = model.get_output_embeddings()(run_packed(model, batch)[scored_RL])
    return logits_NV


def mean_loss(
    model: PreTrainedModel, batches: list[PackedBatch], teacher: PreTrainedModel | None = None
) -> float:
    """Mean weighted loss over batches, nats per weighted token."""
    with torch.no_grad():
        total = sum(float(loss_of(model, batch, teacher)) for batch in batches)
    return total / sum(float(batch.weight_RL.sum()) for batch in batches)
