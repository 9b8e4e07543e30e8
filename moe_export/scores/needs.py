"""Losses and disk space that computing scores needs; loads no torch, so that estimates can ask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from moe_export.scores.base import DataScore, Score, measured

if TYPE_CHECKING:
    from moe_export.passes.loss import Loss

STATES_PER_LOSS = 3
"""Layers whose gradients are on the disk at once, for each loss."""

STATES_WITHOUT_LOSS = 2
"""Layers whose hidden states are on the disk at once in a single forward pass."""


def losses_of(scores: Iterable[Score]) -> tuple[Loss, ...]:
    """Losses whose gradients the scores read, each once, in the order of the scores."""
    losses = (s.loss for s in measured(scores) if isinstance(s, DataScore) and s.loss is not None)
    return tuple(dict.fromkeys(losses))


def states_at_once(scores: Iterable[Score], num_layers: int) -> int:
    """The most hidden states and gradients of one token that are on the disk at once.

    With a backward pass, these are the input of every layer and of the head, and gradients.

    >>> states_at_once([], 24)
    2
    """
    losses = len(losses_of(scores))
    return num_layers + 1 + STATES_PER_LOSS * losses if losses else STATES_WITHOUT_LOSS
