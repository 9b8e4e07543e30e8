"""Streamed model with the hidden states of its batches, for passes layer by layer.

Legend: B sequences of a batch, L its longest length, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_export.passes.batches import Batch
from moe_export.torch_model.layered import StreamedModel

BATCH_TOKENS = 4096
"""Largest number of positions of a batch, padding included."""


class CarriedModel(StreamedModel):
    """Streamed model in float32, and the input of its next layer for every batch.

    Args:
        directory: Checkpoint of a known family, pruned or not.
        batches: Batches that go through the model.

    Attributes:
        hidden_BLD: Hidden states of each batch before the next layer; the caller replaces them.
    """

    def __init__(self, directory: Path, batches: Sequence[Batch]) -> None:
        super().__init__(directory, torch.float32)
        self.batches = batches
        embedded = list(self.begin(batch.tokens_BL for batch in batches))
        self.hidden_BLD = [each.hidden_BLD for each in embedded]
        self._calls = [each.calls for each in embedded]

    def outputs(self, layer: int) -> list[Tensor]:
        """Outputs [B, L, D] of a layer that is in memory, one for each batch."""
        with torch.no_grad():
            return [
                self.run(layer, hidden_BLD, calls[layer])
                for hidden_BLD, calls in zip(self.hidden_BLD, self._calls, strict=True)
            ]

    def submodule_of(self, name: str) -> nn.Module:
        """Module that owns the parameter of the given name."""
        return self.model.get_submodule(name.rpartition(".")[0])
