"""Experts that the documents use most, for `method: esft`.

    token: score[e] = choices of e / choices of all experts, over the tokens of the documents
    gate:  score[e] = routing weights of e / routing weights of all experts

Experts are taken in descending order until their scores reach the share; of equal ones the first is
taken. The paper's gate scores sum to the mean weight of a token's experts; here they sum to 1, so
that the share means the same for both.
Source: Expert-Specialized Fine-Tuning (https://arxiv.org/abs/2407.01906, section 3.2).

Legend: E experts, T tokens, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moe_export.recipe import EsftSettings
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.tuning.forward import run_packed
from moe_export.tuning.methods import Chosen
from moe_export.tuning.packing import PackedBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_TOKENS = 131_072
"""Most tokens whose experts are counted, as in the paper's scripts."""

SLACK = 1e-9
"""Part of a share by which rounding may keep a sum from reaching it."""


def chosen_experts(
    model: PreTrainedModel, layers: int, batches: Iterable[PackedBatch], settings: EsftSettings
) -> Chosen:
    """Experts of each layer to train; none in a layer without experts.

    Args:
        model: Model in evaluation mode.
        layers: Number of its layers.
        batches: Documents, of which the first `SAMPLE_TOKENS` tokens are used.
        settings: Score and share.
    """
    scores: dict[int, Tensor] = {}
    tokens = 0
    for batch in batches:
        if tokens >= SAMPLE_TOKENS:
            break
        tokens += int(batch.is_real_RL.sum())
        with _watched(model, batch, settings, scores), torch.no_grad():
            run_packed(model, batch)
    return tuple(
        reaching(scores[layer], settings.share) if layer in scores else ()
        for layer in range(layers)
    )


def reaching(score_E: Tensor, share: float) -> tuple[int, ...]:
    """Experts with the highest scores that together have a share of all scores, ascending.

    >>> reaching(torch.tensor([1.0, 4.0, 4.0, 1.0]), 0.8)
    (1, 2)
    """
    sorted_E, order_E = torch.sort(score_E, descending=True, stable=True)
    reached = torch.cumsum(sorted_E, 0) >= share * float(score_E.sum()) * (1 - SLACK)
    count = int(reached.to(torch.int8).argmax()) + 1
    return tuple(sorted(order_E[:count].tolist()))


@contextmanager
def _watched(
    model: nn.Module, batch: PackedBatch, settings: EsftSettings, scores: dict[int, Tensor]
) -> Iterator[None]:
    """Adds the scores of a batch to those by layer while the model runs in a `with` block."""
    is_real_T = batch.is_real_RL.reshape(-1)

    def count(block: Any, args: tuple[Tensor, ...]) -> None:
        x_TD = args[0].reshape(-1, args[0].shape[-1])[is_real_T]
        weight_TK, expert_TK = block.route(x_TD)
        added_TK = weight_TK.double() if settings.score == "gate" else torch.ones_like(weight_TK)
        total_E = torch.zeros(len(block.routed), dtype=torch.float64)
        total_E.index_add_(0, expert_TK.reshape(-1), added_TK.double().reshape(-1))
        scores[block.layer] = scores.get(block.layer, 0) + total_E

    blocks = [module for module in model.modules() if isinstance(module, RaggedMoEBlock)]
    handles = [block.register_forward_pre_hook(count) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
