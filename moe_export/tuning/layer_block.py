"""Training of one block towards wanted outputs, in steps of AdamW.

The error is a squared distance over the square of what is wanted, both with the weights of the
tokens.

Legend: T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe_export.recipe import TuneSettings
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.tuning.optimizer import adam_of, take_step


@dataclass(frozen=True)
class Wanted:
    """Inputs of a block and the outputs that it should have.

    Attributes:
        x_TD: Inputs, float32.
        output_TD: Wanted outputs, float32.
        weight_T: Weights of the tokens' errors, float32.
    """

    x_TD: Tensor
    output_TD: Tensor
    weight_T: Tensor


def take_steps(
    block: RaggedMoEBlock,
    parameters: Mapping[str, nn.Parameter],
    wanted_of: Callable[[int], Wanted],
    steps: int,
    settings: TuneSettings,
    tell: Callable[[int], None],
) -> None:
    """Trains weights of a block in place.

    Args:
        block: Block in memory.
        parameters: Trained weights by name.
        wanted_of: Function that reads the tokens of a step.
        steps: Number of steps.
        settings: Settings of the section.
        tell: Function called before each step with its number.
    """
    trained = list(parameters.values())
    for parameter in trained:
        parameter.requires_grad_(True)
    adam = adam_of(parameters, settings)
    with torch.enable_grad():
        for number in range(steps):
            tell(number)
            missed, whole = squares(block, wanted_of(number))
            if float(whole):
                (missed / whole).backward()
                take_step(adam, trained, number, steps, settings)
    for parameter in trained:
        parameter.requires_grad_(False)


def relative_error(block: RaggedMoEBlock, tokens: Iterable[Wanted]) -> float:
    """Squared error of a block's outputs over the square of those wanted."""
    missed = whole = 0.0
    with torch.no_grad():
        for part in tokens:
            of_part = squares(block, part)
            missed, whole = missed + float(of_part[0]), whole + float(of_part[1])
    return missed / whole if whole else 0.0


def squares(block: RaggedMoEBlock, wanted: Wanted) -> tuple[Tensor, Tensor]:
    """Weighted squares of what the block misses, and of what is wanted."""
    output_TD = block(wanted.x_TD)
    output_TD = output_TD[0] if block.returns_logits else output_TD

    def square(values_TD: Tensor) -> Tensor:
        return (values_TD.square().mean(1) * wanted.weight_T).sum()

    return square(output_TD - wanted.output_TD), square(wanted.output_TD)
