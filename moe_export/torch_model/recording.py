"""Watching the experts of a model while it runs, and their gradients after.

Legend: N pairs of a token and one expert it is routed to, D hidden, W width of the expert.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Quantity = Literal["x", "gate", "up", "h", "output"]
"""What can be recorded of an expert: its input x_ND, gate_NW before the activation, up_NW,
h_NW = silu(gate) * up, and output_ND = h · downᵀ before the routing weight."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass
class ExpertTrace:
    """One expert in one forward pass.

    Attributes:
        expert: its number within the layer; the shared one has that after the last.
        token_N: int64, ascending positions on the flattened batch.
        routing_N: the routing weight of each.
        values: what was asked for.
    """

    expert: int
    token_N: Tensor
    routing_N: Tensor
    values: dict[Quantity, Tensor] = field(default_factory=dict)


@dataclass
class Recording:
    """What one forward pass leaves behind.

    Attributes:
        kept: quantities to record.
        differentiated: those of them that gradients will be asked for. The first layers of a model
            without trainable parameters need no gradient themselves, so that these are made the
            leaves where autograd starts.
        shared: whether the shared expert is recorded too.
        layers: per layer, the experts that tokens reached, in expert order.
    """

    kept: frozenset[Quantity]
    differentiated: frozenset[Quantity]
    shared: bool = False
    layers: dict[int, list[ExpertTrace]] = field(default_factory=dict)

    def note(self, trace: ExpertTrace, quantity: Quantity, value: Tensor) -> Tensor:
        """Records a value if it is asked for, and hands it back."""
        if quantity in self.differentiated and not value.requires_grad:
            value.requires_grad_()
        if quantity in self.kept:
            trace.values[quantity] = value
        return value


class Recordable(nn.Module):  # type: ignore[misc]
    """Base of the blocks that write to a recording while one is set."""

    recording: Recording | None = None


@contextmanager
def recording(
    model: nn.Module,
    kept: frozenset[Quantity],
    differentiated: frozenset[Quantity] = frozenset(),
    *,
    shared: bool = False,
) -> Iterator[Recording]:
    """Records the experts of every MoE block of a model during one forward pass.

    Args:
        model: holds any number of `RaggedMoEBlock`.
        kept: quantities to record.
        differentiated: a part of `kept`, see `Recording`; gradients are enabled if there is any.
        shared: see `Recording`.
    """
    assert differentiated <= kept
    made = Recording(kept, differentiated, shared)
    blocks = [module for module in model.modules() if isinstance(module, Recordable)]
    for block in blocks:
        block.recording = made
    try:
        with torch.set_grad_enabled(bool(differentiated)):
            yield made
    finally:
        for block in blocks:
            block.recording = None
