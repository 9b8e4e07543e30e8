"""Divergence of a pruned model from the unpruned one, and its gradient at the routers.

One layer is in memory at a time, forward and backward (`passes.layers`). The choice of experts is
taken as constant, and routing weights are differentiated as computed in evaluation. The sparse
mixer's weights also jump when another logit comes close, which the gradients do not show.

Legend: E experts, D hidden, T tokens that have a next token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moe_export.passes.batches import Batch
from moe_export.passes.layers import INPUT, NormedBatch, Passes
from moe_export.passes.loss import divergence_nats
from moe_export.passes.states import States
from moe_export.torch_model.layered import LayeredModel

TEACHER, SLOPE = "teacher", "slope"
"""Kinds of state: normalized last hidden states of the unpruned model, [T, D]; gradients."""


def keep_teacher(model: LayeredModel, batches: Mapping[int, Batch], states: States) -> None:
    """Runs the unpruned model and stores its `TEACHER` states.

    Args:
        model: Unpruned model in float32.
        batches: Batches by number.
        states: Store that receives the states; other kinds are removed again.
    """
    passes = Passes(model, batches, states)
    passes.begin()
    last = len(model.layers)
    for layer in range(last):
        with model.layer(layer):
            passes.forward(layer, batches)
        states.drop(INPUT, layer)
    with model.head() as (norm, _):
        for number, batch in batches.items():
            state_BLD = passes.state(INPUT, last, number)
            states.put(TEACHER, 0, number, NormedBatch(norm, state_BLD, batch.target_T).hidden_TD)
    states.drop(INPUT, last)


class RouterPasses(Passes):
    """Passes through a pruned model whose routers are trained.

    The constructor runs all batches up to the first router.

    Args:
        model: Pruned model in float32.
        batches: Batches by number.
        states: Store that holds the `TEACHER` states.
        routers: Trained routers by layer, [E, D] float32, which replace those of the model.
    """

    def __init__(
        self,
        model: LayeredModel,
        batches: Mapping[int, Batch],
        states: States,
        routers: Mapping[int, nn.Parameter],
    ) -> None:
        super().__init__(model, batches, states)
        self.routers = routers
        self._first, self._last = min(routers), len(model.layers)
        self.begin()
        for layer in range(self._first):
            with model.layer(layer):
                self.forward(layer, batches)
            states.drop(INPUT, layer)

    def divergence(self, numbers: Sequence[int]) -> float:
        """KL from the unpruned model in nats, mean over the tokens of the given batches."""
        total_nats = 0.0
        for layer in range(self._first, self._last):
            self._onward(layer, numbers)
            self._drop(INPUT, layer)
        with self.model.head() as (norm, head):
            for number in numbers:
                hidden_TD = self._normed(norm, number).hidden_TD
                total_nats += divergence_nats(hidden_TD, self._teacher(number), head, 1.0)[0]
        self._drop(INPUT, self._last)
        return total_nats / self.tokens(numbers)

    def gradients(self, numbers: Sequence[int], temperature: float) -> float:
        """Sets the routers' gradients of the mean divergence over the given batches.

        Returns:
            Mean divergence in nats per token, see `passes.loss.divergence_nats`.
        """
        for layer in range(self._first, self._last):
            self._onward(layer, numbers)
        mean_nats = self._through_head(numbers, temperature)
        for layer in reversed(range(self._first, self._last)):
            with self.model.layer(layer), torch.enable_grad():
                self._backward(layer, numbers)
            self._drop(INPUT, layer + 1)
            self._drop(SLOPE, layer + 1)
        return mean_nats

    def tokens(self, numbers: Sequence[int]) -> int:
        """Number of tokens in the given batches that have a next token."""
        return sum(int(self.batches[number].target_T.sum()) for number in numbers)

    def _onward(self, layer: int, numbers: Sequence[int]) -> None:
        with self.model.layer(layer):
            self._install(layer)
            self.forward(layer, numbers)

    def _through_head(self, numbers: Sequence[int], temperature: float) -> float:
        total_nats, tokens = 0.0, self.tokens(numbers)
        with self.model.head() as (norm, head):
            for number in numbers:
                normed = self._normed(norm, number)
                nats, slope_TD = divergence_nats(
                    normed.hidden_TD, self._teacher(number), head, temperature
                )
                total_nats += nats
                self.states.put(SLOPE, self._last, number, normed.gradient(slope_TD / tokens))
        return total_nats / tokens

    def _backward(self, layer: int, numbers: Sequence[int]) -> None:
        """Sets the gradient of the layer's router, and stores the one at the layer's input.

        Nothing below the first router needs a gradient.
        """
        router = self._install(layer)
        total_ED = None if router is None else torch.zeros_like(router)
        for number in numbers:
            state_BLD = self.state(INPUT, layer, number).requires_grad_(layer > self._first)
            wanted = [state_BLD] if layer > self._first else []
            gradients = torch.autograd.grad(
                self.run(layer, number, state_BLD),
                wanted if router is None else [*wanted, router],
                self.state(SLOPE, layer + 1, number),
            )
            if layer > self._first:
                self.states.put(SLOPE, layer, number, gradients[0])
            if total_ED is not None:
                total_ED += gradients[-1]
        if router is not None:
            router.grad = total_ED

    def _install(self, layer: int) -> nn.Parameter | None:
        """Puts the trained router into a layer that is in memory, if it has experts."""
        block = self.model.block(layer)
        if block is None:
            return None
        block.router.weight = self.routers[layer]
        return self.routers[layer]

    def _normed(self, norm: nn.Module, number: int) -> NormedBatch:
        state_BLD = self.state(INPUT, self._last, number)
        return NormedBatch(norm, state_BLD, self.batches[number].target_T)

    def _teacher(self, number: int) -> Tensor:
        return self.state(TEACHER, 0, number)

    def _drop(self, kind: str, layer: int) -> None:
        """Removes states of a layer, except those that every step begins with."""
        if layer > self._first:
            self.states.drop(kind, layer)
