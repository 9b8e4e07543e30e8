"""What goes forward and back through a model one layer at a time, its batches kept between layers.

Legend: B sequences of a batch, L positions, T = B * L or those of them that have a next token,
D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from moe_export.passes.batches import Batch
from moe_export.passes.states import States
from moe_export.torch_model.layered import LayerCall, LayeredModel

INPUT = "input"
"""The kind of state that a layer is given; that after the last layer is the head's."""


@dataclass
class Passes:
    """Batches, numbered, on their way through a model.

    Attributes:
        model: in memory, or streamed.
        batches: by number.
        states: where they are kept between layers, by kind and number.
        calls: by number, what each layer is called with.
    """

    model: LayeredModel
    batches: Mapping[int, Batch]
    states: States
    calls: dict[int, tuple[LayerCall, ...]] = field(default_factory=dict)

    def begin(self) -> None:
        """Embeds all batches, unless their embeddings are there."""
        known = self.states.finished(INPUT, 0)
        tokens = (batch.tokens_BL for batch in self.batches.values())
        for number, begun in zip(self.batches, self.model.begin(tokens), strict=True):
            self.calls[number] = begun.calls
            if not known:
                self.states.put(INPUT, 0, number, begun.hidden_BLD)
        self.states.finish(INPUT, 0)

    def forward(
        self,
        layer: int,
        numbers: Iterable[int],
        tell: Callable[[], None] = lambda: None,
        kinds: tuple[str, str] = (INPUT, INPUT),
    ) -> None:
        """Takes batches through a layer that is in memory.

        Args:
            layer: which.
            numbers: of the batches.
            tell: called before each of them.
            kinds: of the states that are read and of those that are made.
        """
        with torch.no_grad():
            for number in numbers:
                tell()
                state_BLD = self.state(kinds[0], layer, number)
                self.states.put(kinds[1], layer + 1, number, self.run(layer, number, state_BLD))

    def run(self, layer: int, number: int, state_BLD: Tensor) -> Tensor:
        """What a layer that is in memory makes of a batch, [B, L, D]."""
        return self.model.run(layer, state_BLD, self.calls[number][layer])

    def state(self, kind: str, layer: int, number: int) -> Tensor:
        """What was kept."""
        return self.states.get(kind, layer, number, self.model.device)


class NormedBatch:
    """A batch behind the last layer and the final norm, and the way back.

    Args:
        norm: the final norm, in memory.
        state_BLD: what the last layer gives.
        target_T: bool, the positions that have a next token.

    Attributes:
        hidden_TD: what the head is given at these positions.
    """

    def __init__(self, norm: nn.Module, state_BLD: Tensor, target_T: Tensor) -> None:
        with torch.enable_grad():
            self._state_BLD = state_BLD.requires_grad_()
            self._hidden_BLD = norm(self._state_BLD)
        self._target_T = target_T
        self.hidden_TD = self._hidden_BLD.detach().flatten(0, 1)[target_T]

    def gradient(self, slope_TD: Tensor) -> Tensor:
        """From the gradient at `hidden_TD` that at the last layer's output, [B, L, D]."""
        whole_TD = torch.zeros_like(self._hidden_BLD.detach()).flatten(0, 1)
        whole_TD[self._target_T] = slope_TD
        (slope_BLD,) = torch.autograd.grad(
            self._hidden_BLD,
            self._state_BLD,
            whole_TD.view_as(self._hidden_BLD),
            retain_graph=True,
        )
        return slope_BLD
