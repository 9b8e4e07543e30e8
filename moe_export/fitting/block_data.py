"""Inputs and wanted outputs of one MoE block, which its kept weights are fitted to.

With B the unpruned block, x its input in the pruned model, and O the output of the whole decoder
layer, the wanted output is

    y = B(x) + mix * (O of the unpruned model - O of the pruned model with B unpruned)

so mix 0 asks for what the unpruned block makes of the same input, and mix 1 for what brings the
residual stream of the pruned model to that of the unpruned one.

The squared error of a token is divided by the mean square of O of the unpruned model, because the
next norm divides by it too. In some models the first token of a sequence has a residual stream a
hundred times as large as the others', which otherwise decides the whole fit.

Legend: T real tokens of all batches, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class BlockData:
    """Tokens that a block is fitted to.

    Attributes:
        x_TD: Inputs of the block, float32.
        wanted_TD: Wanted outputs, float32.
        weight_T: Weight of each token's squared error, float32; the mean is about 1.
    """

    x_TD: Tensor
    wanted_TD: Tensor
    weight_T: Tensor

    def __len__(self) -> int:
        return len(self.x_TD)

    def is_finite(self) -> bool:
        """Tells whether all values are finite."""
        values = (self.x_TD, self.wanted_TD, self.weight_T)
        return all(bool(value.isfinite().all()) for value in values)

    def parts(self, tokens: int) -> Iterator[BlockData]:
        """Data of at most so many tokens at a time, without a copy."""
        for first in range(0, len(self), tokens):
            yield self.rows(slice(first, first + tokens))

    def rows(self, tokens: slice) -> BlockData:
        """Data of a range of tokens, without a copy."""
        return BlockData(self.x_TD[tokens], self.wanted_TD[tokens], self.weight_T[tokens])
