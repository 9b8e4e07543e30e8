"""Wanted outputs of the blocks of a model that is tuned layer by layer.

With B the source's block, x its input in the tuned model, and O the output of the whole decoder
layer, the wanted output of the tuned block is

    y = B(x) + MIX * (O of the source - O of the tuned model with B)

as in the fitting of pruned blocks. The squared error of a token is divided by the mean square of O
of the source, because the next norm divides by it too.

Legend: B documents of a batch, L positions, T positions that have a next token, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from moe_export.errors import CheckpointError
from moe_export.passes.layers import INPUT, Passes
from moe_export.passes.watched import watched
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.tuning.layer_block import Wanted

MIX = 0.5
"""Share of the source's residual stream in the wanted outputs, as by default for pruned blocks."""

BLOCK_INPUT, BLOCK_OUTPUT, WEIGHT = "block-input", "block-output", "weight"
"""Kinds of state that a block is trained on: x, y and the weights of errors."""


def put_goals(
    passes: Passes, layer: int, tuned: str, weights: Mapping[int, Tensor], epsilon: float
) -> None:
    """Takes both streams through a layer of the source, and stores its outputs and the goals.

    Args:
        passes: Passes of the source, with the layer in memory.
        layer: Number of the layer.
        tuned: Kind of the tuned model's states before the layer.
        weights: Weight of each position that has a next token, [T] by number of its batch.
        epsilon: Addition to the mean square that errors are divided by.

    Raises:
        CheckpointError: Activations are not finite.
    """
    block = passes.model.block(layer)
    for number in passes.batches:
        output_BLD = passes.run(layer, number, passes.state(INPUT, layer, number))
        passes.states.put(INPUT, layer + 1, number, output_BLD)
        if block is not None:
            scale_T = 1 / (output_BLD.square().mean(-1).flatten() + epsilon)
            wanted = _wanted(passes, layer, number, block, tuned, output_BLD)
            _put(passes, layer, number, wanted, scale_T, weights[number])


def goals(passes: Passes, layer: int, numbers: Iterable[int]) -> Wanted:
    """Stored goals of some batches."""

    def stored(kind: str) -> Tensor:
        return torch.cat([passes.state(kind, layer, number) for number in numbers])

    numbers = tuple(numbers)
    return Wanted(stored(BLOCK_INPUT), stored(BLOCK_OUTPUT), stored(WEIGHT))


def drop_goals(passes: Passes, layer: int) -> None:
    """Removes the goals of a layer."""
    for kind in (BLOCK_INPUT, BLOCK_OUTPUT, WEIGHT):
        passes.states.drop(kind, layer)


def _wanted(
    passes: Passes,
    layer: int,
    number: int,
    block: RaggedMoEBlock,
    tuned: str,
    output_BLD: Tensor,
) -> tuple[Tensor, Tensor]:
    """Input of the block in the tuned model, and its wanted output, [B, L, D]."""
    with watched(block) as seen:
        reached_BLD = passes.run(layer, number, passes.state(tuned, layer, number))
    return seen.x, seen.output + MIX * (output_BLD - reached_BLD)


def _put(
    passes: Passes,
    layer: int,
    number: int,
    wanted: tuple[Tensor, Tensor],
    scale_T: Tensor,
    weight_T: Tensor,
) -> None:
    """Stores the positions of a batch that have a next token."""
    target_T = passes.batches[number].target_T
    x_TD, wanted_TD = (values.flatten(0, -2)[target_T] for values in wanted)
    if not (x_TD.isfinite().all() and wanted_TD.isfinite().all()):
        raise CheckpointError(
            f"layer {layer}: activations on the documents are not finite in float32, so that "
            "nothing can be trained; look for values in the checkpoint that are far too large"
        )
    passes.states.put(BLOCK_INPUT, layer, number, x_TD)
    passes.states.put(BLOCK_OUTPUT, layer, number, wanted_TD)
    passes.states.put(WEIGHT, layer, number, scale_T[target_T] * weight_T)
