"""Bias of the routers and choice of the condensers, for `method: condenser`.

After each step, with u[e] the sum over its real tokens of softmax(logits + b)[e]:

    b[e] += rate * sign(u[e] - mean of u)        rate = reach / steps

DeepSeek's rule has the opposite sign: this one raises experts that are used more than the mean, so
that few experts come to carry most tokens. After the first phase the experts of a layer with the
lowest bias become condensers, which every token gets from then on.
Source: ExpertCondenser (https://github.com/HectorHHZ/ExpertCondenser).

Legend: T tokens, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from moe_export.recipe import CondenserSettings, TuneSettings
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.tuning.extension import condensers_of
from moe_export.tuning.packing import PackedBatch


def moved_bias(bias_E: Tensor, mass_E: Tensor, rate: float) -> Tensor:
    """Bias after a step, which raises experts with more probability than the mean.

    Args:
        bias_E: Bias before, float32.
        mass_E: Sum of each expert's probability over the tokens of the step.
        rate: Length of the step.
    """
    return bias_E + rate * torch.sign(mass_E - mass_E.mean()).to(bias_E.dtype)


def first_phase(settings: CondenserSettings, steps: int) -> int:
    """Number of steps before the condensers are chosen."""
    return max(1, round(settings.phases[0] * steps))


@dataclass
class Condensing:
    """Biases and condensers of a model that is trained.

    Attributes:
        model: Model whose blocks have router biases.
        settings: Settings of the section.
        steps: Number of steps of the training.
        mass: Probability of each expert so far in this step, [E] float64 by layer.
    """

    model: nn.Module
    settings: TuneSettings
    steps: int
    mass: dict[int, Tensor] = field(default_factory=dict)

    @property
    def blocks(self) -> list[RaggedMoEBlock]:
        """Blocks of the model in order."""
        return [m for m in self.model.modules() if isinstance(m, RaggedMoEBlock)]

    @property
    def experts(self) -> dict[int, tuple[int, ...]]:
        """Condensers by layer; none before they are chosen."""
        return {block.layer: block.own_condensers for block in self.blocks}

    @contextmanager
    def watched(self, batch: PackedBatch) -> Iterator[None]:
        """Adds the probabilities of a batch's real tokens; the model runs in a `with` block."""
        is_real_T = batch.is_real_RL.reshape(-1)

        def add(block: RaggedMoEBlock, args: tuple[Tensor, ...]) -> None:
            x_TD = args[0].detach().reshape(-1, args[0].shape[-1])[is_real_T]
            with torch.no_grad():
                mass_E = block.choice_shares(x_TD).double().sum(0)
            self.mass[block.layer] = self.mass.get(block.layer, torch.zeros_like(mass_E)) + mass_E

        handles = [block.register_forward_pre_hook(add) for block in self.blocks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def step(self, number: int) -> None:
        """Moves the biases after a step, and chooses condensers at the end of the first phase."""
        rule = self.settings.condensers
        for block in self.blocks:
            if block.layer in self.mass:
                rate = rule.bias_reach / self.steps
                block.router_bias.copy_(moved_bias(block.router_bias, self.mass[block.layer], rate))
        self.mass = {}
        if rule.count and number + 1 == first_phase(rule, self.steps):
            self.set_experts({block.layer: self._chosen(block) for block in self.blocks})

    def set_experts(self, experts: dict[int, tuple[int, ...]]) -> None:
        """Makes experts condensers, given by layer."""
        layers = max(experts) + 1
        rows = tuple(experts.get(layer, ()) for layer in range(layers))
        for block in self.blocks:
            padded = rows + ((),) * (block.spec.num_layers - layers)
            block.spec = replace(block.spec, condensers=condensers_of(self.settings, padded))

    def _chosen(self, block: RaggedMoEBlock) -> tuple[int, ...]:
        """Experts of the lowest bias, or of the highest; of equal ones the first."""
        rule = self.settings.condensers
        order_E = torch.argsort(block.router_bias, stable=True, descending=rule.choose == "highest")
        return tuple(sorted(order_E[: rule.count].tolist()))
