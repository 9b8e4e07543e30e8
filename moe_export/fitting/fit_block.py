"""Fit of one pruned block: `down` by least squares, steps of Adam, and what they are worth.

Legend: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.fitting.block_data import BlockData
from moe_export.fitting.block_steps import StepRule, take_steps, trained_weights
from moe_export.fitting.fitted_layer import BlockErrors
from moe_export.fitting.refit import TOKENS_AT_ONCE, refit_down
from moe_export.torch_model.block import RaggedMoEBlock


@dataclass(frozen=True)
class FitRule:
    """Settings of the fit.

    Attributes:
        ridge: Pull towards the old `down`, see `refit`.
        mix: Share of the unpruned model's residual stream in the wanted outputs, see `block_data`.
        steps: Settings of block-wise distillation; None for none.
    """

    ridge: float
    mix: float
    steps: StepRule | None = None


@dataclass(frozen=True)
class FittedBlock:
    """Outcome of fitting a block.

    Attributes:
        errors: Errors on the held-out tokens.
        changed: Weights of the block that the fit changed.
    """

    errors: BlockErrors
    changed: list[nn.Parameter]


def fit_block(
    block: RaggedMoEBlock,
    training: BlockData,
    held_out: BlockData,
    fitted: frozenset[int],
    rule: FitRule,
    round_weights: Callable[[], None],
) -> FittedBlock:
    """Fits a block in place, as far as that lowers its error on held-out tokens.

    Args:
        block: Block with only the kept dimensions.
        training: Tokens that the weights are fitted to.
        held_out: Tokens that they are judged on.
        fitted: Numbers of the experts that have enough tokens.
        rule: Settings of the fit.
        round_weights: Function that rounds the block's weights as they will be stored.
    """

    def tried(error: float, changed: list[nn.Parameter], change: Callable[[], None]) -> float:
        """Error after a change of some weights, which is undone if the error was lower before."""
        before = [parameter.clone() for parameter in changed]
        change()
        round_weights()
        after = relative_error(block, held_out)
        if not after < error:
            for parameter, values in zip(changed, before, strict=True):
                parameter.copy_(values)
        return after

    def refit() -> None:
        refit_down(block, training, fitted, rule.ridge)

    def distil() -> None:
        assert rule.steps is not None
        take_steps(block, training, fitted, rule.steps)
        refit()

    pruned = relative_error(block, held_out)
    downs = [expert.down.weight for n, expert in enumerate(block.all_experts) if n in fitted]
    refitted = tried(pruned, downs, refit)
    changed = downs if refitted < pruned else []
    if rule.steps is None:
        return FittedBlock(BlockErrors(pruned, refitted), changed)
    trained = trained_weights(block, fitted)
    distilled = tried(min(pruned, refitted), trained, distil)
    changed = trained if distilled < min(pruned, refitted) else changed
    return FittedBlock(BlockErrors(pruned, refitted, distilled), changed)


def relative_error(block: RaggedMoEBlock, data: BlockData) -> float:
    """Weighted squared error of a block's outputs over the weighted square of those wanted."""
    missed = wanted = 0.0
    with torch.no_grad():
        for part in data.parts(TOKENS_AT_ONCE):
            output_TD = block(part.x_TD)
            output_TD = output_TD[0] if block.returns_logits else output_TD
            missed += _weighted_square(output_TD - part.wanted_TD, part.weight_T)
            wanted += _weighted_square(part.wanted_TD, part.weight_T)
    return missed / max(wanted, 1e-30)


def _weighted_square(values_TD: Tensor, weight_T: Tensor) -> float:
    return float((values_TD.square().sum(1).double() * weight_T).sum())
