"""Block-wise distillation: steps of Adam that bring a pruned block near its wanted outputs.

All kept dimensions of gate, up and down and the router are trained. A step draws tokens in
proportion to their weights, with replacement. The rate of a matrix is relative to the root mean
square of its weights, because Adam moves each weight by about its rate; it falls linearly to zero.

Legend: T tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from moe_export.fitting.block_data import BlockData
from moe_export.torch_model.block import RaggedMoEBlock

SEED = 20261128
"""Seed of the tokens of steps, to which the layer's number is added; any number would do."""

BETAS = (0.9, 0.95)
"""Decay of Adam's averages; the second is short because there are few steps."""


@dataclass(frozen=True)
class StepRule:
    """Settings of the steps, with the names of the recipe's `prune.distill_blocks`."""

    steps: int
    learning_rate: float
    tokens_per_step: int


def take_steps(
    block: RaggedMoEBlock, data: BlockData, fitted: frozenset[int], rule: StepRule
) -> None:
    """Trains a block in place.

    Args:
        block: Block with only the kept dimensions.
        data: Inputs and wanted outputs.
        fitted: Numbers of the experts to train; the router is trained with them.
        rule: Settings of the steps.
    """
    trained = trained_weights(block, fitted)
    groups = [{"params": [p], "lr": rule.learning_rate * _size(p)} for p in trained]
    adam = torch.optim.Adam(groups, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / rule.steps)
    draws = torch.Generator().manual_seed(SEED + block.layer)
    for parameter in trained:
        parameter.requires_grad_(True)
    with torch.enable_grad():
        for _ in range(rule.steps):
            token_N = torch.multinomial(
                data.weight_T, rule.tokens_per_step, replacement=True, generator=draws
            )
            output_ND = block(data.x_TD[token_N])
            output_ND = output_ND[0] if block.returns_logits else output_ND
            loss = (output_ND - data.wanted_TD[token_N]).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    for parameter in trained:
        parameter.requires_grad_(False)


def trained_weights(block: RaggedMoEBlock, fitted: frozenset[int]) -> list[nn.Parameter]:
    """Weights of a block that steps change: those of the fitted experts, and the router."""
    experts = [expert for number, expert in enumerate(block.all_experts) if number in fitted]
    matrices = [matrix.weight for expert in experts for matrix in expert]
    if block.spec.family.routing.score == "sparsemixer":
        # Its routing weights jump where another logit comes close, which no gradient shows.
        return matrices
    return [block.router.weight, *matrices]


def _size(parameter: nn.Parameter) -> float:
    """Root mean square of the weights, in float64 for equal results with any number of threads."""
    return float(parameter.detach().double().square().mean().sqrt())
