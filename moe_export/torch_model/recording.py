"""Recording of experts' inputs, intermediate values and outputs during a forward pass.

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
"""Quantity of an expert that can be recorded: its input x_ND, gate_NW before the activation, up_NW,
h_NW = silu(gate) * up, and output_ND = h · downᵀ before the routing weight."""

QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


@dataclass
class ExpertTrace:
    """Recorded values of one expert in one forward pass.

    Attributes:
        expert: Number of the expert in its layer; the shared one follows the last routed one.
        token_N: Ascending positions of its tokens in the flattened batch, int64.
        routing_N: Routing weight of each token.
        values: Recorded tensors by quantity.
    """

    expert: int
    token_N: Tensor
    routing_N: Tensor
    values: dict[Quantity, Tensor] = field(default_factory=dict)


@dataclass
class Recording:
    """Recorded values of all experts in one forward pass.

    Attributes:
        kept: Quantities to record.
        differentiated: Recorded quantities whose gradients are needed. The model has no trainable
            parameters, so the first of them on a path becomes a leaf of autograd.
        shared: True if the shared expert is recorded too.
        layers: Traces by layer of the experts that got tokens, in expert order.
    """

    kept: frozenset[Quantity]
    differentiated: frozenset[Quantity]
    shared: bool = False
    layers: dict[int, list[ExpertTrace]] = field(default_factory=dict)

    def record(self, trace: ExpertTrace, quantity: Quantity, value: Tensor) -> Tensor:
        """Stores a value in the trace if its quantity is in `kept`, and returns the value."""
        if quantity in self.differentiated and not value.requires_grad:
            value.requires_grad_()
        if quantity in self.kept:
            trace.values[quantity] = value
        return value


class Recordable(nn.Module):  # type: ignore[misc]
    """Base class of blocks that write to a recording while one is set."""

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
        model: Model with any number of `RaggedMoEBlock`.
        kept: Quantities to record.
        differentiated: Subset of `kept` whose gradients are needed; if it is not empty, gradients
            are enabled.
        shared: True if the shared expert is recorded too.
    """
    assert differentiated <= kept
    current = Recording(kept, differentiated, shared)
    blocks = [module for module in model.modules() if isinstance(module, Recordable)]
    for block in blocks:
        block.recording = current
    try:
        with torch.set_grad_enabled(bool(differentiated)):
            yield current
    finally:
        for block in blocks:
            block.recording = None
