"""Divergence from the source of a model that went through the layers beside it.

Legend: T positions that have a next token, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from moe_export.passes.layers import INPUT, NormedBatch
from moe_export.passes.loss import token_divergences
from moe_export.tuning.layerwise import LayerTuning


def divergences(tuning: LayerTuning, kind: str) -> list[float]:
    """Mean divergence of each source's held-out documents, nats per weighted token.

    Args:
        tuning: Tuning whose layers are all done.
        kind: Kind of the states that are compared with the source's.
    """
    with tuning.source.model.head() as (norm, head):
        return [_mean(tuning, kind, numbers, norm, head) for numbers in tuning.documents.held_out]


def _mean(
    tuning: LayerTuning, kind: str, numbers: Sequence[int], norm: nn.Module, head: nn.Linear
) -> float:
    total = weight = 0.0
    for number in numbers:
        ours_TD, goal_TD = (_last(tuning, of, number, norm) for of in (kind, INPUT))
        gold_T = tuning.source.batches[number].gold_T
        nats_T, _ = token_divergences(ours_TD, goal_TD, gold_T, head)
        weight_T = tuning.documents.weights[number]
        total, weight = total + float((nats_T * weight_T).sum()), weight + float(weight_T.sum())
    return total / weight if weight else 0.0


def _last(tuning: LayerTuning, kind: str, number: int, norm: nn.Module) -> Tensor:
    """Hidden states [T, D] of a batch after the final norm."""
    state_BLD = tuning.source.state(kind, tuning.model.spec.num_layers, number)
    target_T = tuning.source.batches[number].target_T
    return NormedBatch(norm, state_BLD, target_T).hidden_TD
