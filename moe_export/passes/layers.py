"""Forward and backward passes one layer at a time, with states stored between layers.

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
"""Kind of state that is a layer's input; after the last layer it is the input of the final norm."""


@dataclass
class Passes:
    """Numbered batches that go through a model layer by layer.

    Attributes:
        model: Model in memory, or streamed.
        batches: Batches by number.
        states: Store of the tensors between layers, by kind, layer and batch number.
        calls: Arguments of each layer, by batch number.
    """

    model: LayeredModel
    batches: Mapping[int, Batch]
    states: States
    calls: dict[int, tuple[LayerCall, ...]] = field(default_factory=dict)

    def begin(self) -> None:
        """Embeds all batches and stores the embeddings, unless they are stored already."""
        is_stored = self.states.finished(INPUT, 0)
        tokens = (batch.tokens_BL for batch in self.batches.values())
        for number, embedded in zip(self.batches, self.model.begin(tokens), strict=True):
            self.calls[number] = embedded.calls
            if not is_stored:
                self.states.put(INPUT, 0, number, embedded.hidden_BLD)
        self.states.finish(INPUT, 0)

    def forward(
        self,
        layer: int,
        numbers: Iterable[int],
        tell: Callable[[], None] = lambda: None,
        kinds: tuple[str, str] = (INPUT, INPUT),
    ) -> None:
        """Runs batches through a layer that is in memory, and stores its outputs.

        Args:
            layer: Number of the layer.
            numbers: Numbers of the batches.
            tell: Function called before each batch.
            kinds: Kind of the states that are read, and kind of the states that are written.
        """
        with torch.no_grad():
            for number in numbers:
                tell()
                state_BLD = self.state(kinds[0], layer, number)
                self.states.put(kinds[1], layer + 1, number, self.run(layer, number, state_BLD))

    def run(self, layer: int, number: int, state_BLD: Tensor) -> Tensor:
        """Output [B, L, D] of a layer that is in memory for one batch."""
        return self.model.run(layer, state_BLD, self.calls[number][layer])

    def state(self, kind: str, layer: int, number: int) -> Tensor:
        """Stored tensor of a kind, layer and batch, on the model's device."""
        return self.states.get(kind, layer, number, self.model.device)


class NormedBatch:
    """Batch after the final norm, with the backward pass through the norm.

    Args:
        norm: Final norm, in memory.
        state_BLD: Output of the last layer.
        target_T: True at positions that have a next token, bool.

    Attributes:
        hidden_TD: Normalized hidden states at these positions, the input of the lm_head.
    """

    def __init__(self, norm: nn.Module, state_BLD: Tensor, target_T: Tensor) -> None:
        with torch.enable_grad():
            self._state_BLD = state_BLD.requires_grad_()
            self._hidden_BLD = norm(self._state_BLD)
        self._target_T = target_T
        self.hidden_TD = self._hidden_BLD.detach().flatten(0, 1)[target_T]

    def gradient(self, slope_TD: Tensor) -> Tensor:
        """Gradient [B, L, D] at the last layer's output, given the one at `hidden_TD`."""
        whole_TD = torch.zeros_like(self._hidden_BLD.detach()).flatten(0, 1)
        whole_TD[self._target_T] = slope_TD
        (slope_BLD,) = torch.autograd.grad(
            self._hidden_BLD,
            self._state_BLD,
            whole_TD.view_as(self._hidden_BLD),
            retain_graph=True,
        )
        return slope_BLD
