"""Block of one layer with only the kept dimensions, whose weights are then fitted.

Legend: P kept dimensions, D hidden, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_export.families.base import ModelSpec
from moe_export.torch_model.block import Matrix, RaggedMoEBlock, SwiGlu
from moe_export.torch_model.compressed import UNSCALED, Scales

Kept = Mapping[tuple[int, int], NDArray[np.int64]]
"""Ascending positions [P] of the kept dimensions, by layer and expert. The shared expert is
included only if it is pruned; its number follows the last routed one."""


def compact_block(whole: RaggedMoEBlock, pruned: ModelSpec, kept: Kept) -> RaggedMoEBlock:
    """Block of the pruned model with the kept weights of a whole block, which is emptied.

    Weights are taken expert by expert, so that both blocks are never in memory together. An expert
    that is not pruned is taken as it is.

    Args:
        whole: Block of the unpruned model, in memory.
        pruned: Sizes of the pruned model.
        kept: Positions of the kept dimensions.
    """
    with torch.device("meta"):
        block = RaggedMoEBlock(pruned, whole.layer, returns_logits=whole.returns_logits)
    block.take_router(whole)
    block.take_vectors(whole, _units(whole, kept))
    for number, (small, large) in enumerate(zip(block.all_experts, whole.all_experts, strict=True)):
        kept_P = kept.get((whole.layer, number))
        _fill_expert(small, large, None if kept_P is None else torch.from_numpy(kept_P))
        for matrix in large:
            _fill(matrix, torch.empty(0))
    if block.shared is not None and block.shared[1] is not None:
        assert whole.shared is not None
        assert whole.shared[1] is not None
        _fill(block.shared[1], whole.shared[1].weight)
    return block


@contextmanager
def in_place_of(whole: RaggedMoEBlock, block: RaggedMoEBlock) -> Iterator[None]:
    """Lets another block compute for a block of the model in a `with` block."""
    # An attribute of the instance is found before the method of the class.
    whole.__dict__["forward"] = block.forward
    try:
        yield
    finally:
        del whole.__dict__["forward"]


def hidden(swiglu: SwiGlu, x_ND: Tensor, scales: Scales = UNSCALED) -> Tensor:
    """Input [N, P] of an expert's `down`.

    Args:
        swiglu: Weights of the expert.
        x_ND: Inputs, before they are scaled.
        scales: Factors of the tokens' inputs and of the expert's hidden values.
    """
    values: dict[str, Tensor] = {}

    def observe(quantity: str, value: Tensor) -> Tensor:
        values[quantity] = value
        # No output is needed, so that `down` has no row to multiply.
        return value[:0] if quantity == "h" else value

    swiglu.forward(x_ND, observe, scales)
    return values["h"]


def _units(whole: RaggedMoEBlock, kept: Kept) -> Tensor:
    """Positions before any pruning of the kept dimensions of all routed experts, int64."""
    units = []
    for number, expert in enumerate(whole.routed):
        unit_W = whole.units(number)
        if unit_W is None:
            unit_W = torch.arange(expert.down.weight.shape[1])
        kept_P = kept.get((whole.layer, number))
        units.append(unit_W if kept_P is None else unit_W[torch.from_numpy(kept_P)])
    return torch.cat(units)


def _fill_expert(small: SwiGlu, large: SwiGlu, kept_P: Tensor | None) -> None:
    """Copies the kept rows of gate and up and the kept columns of down; all if None."""
    if kept_P is None:
        for to, of in zip(small, large, strict=True):
            _fill(to, of.weight)
        return
    _fill(small.gate, large.gate.weight[kept_P])
    _fill(small.up, large.up.weight[kept_P])
    _fill(small.down, large.down.weight[:, kept_P].contiguous())


def _fill(matrix: Matrix, weight: Tensor) -> None:
    matrix.weight = nn.Parameter(weight.detach(), requires_grad=False)
