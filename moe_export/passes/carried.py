"""The hidden states of a set of batches, carried through a model one decoder layer at a time.

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
"""Positions of a batch, padding included."""


class CarriedModel(StreamedModel):
    """A streamed model in float32, with what each batch is before the layer that is next.

    Args:
        directory: of a checkpoint, pruned or not.
        batches: what is run.
    """

    def __init__(self, directory: Path, batches: Sequence[Batch]) -> None:
        super().__init__(directory, torch.float32)
        self.batches = batches
        begun = list(self.begin(batch.tokens_BL for batch in batches))
        self.hidden_BLD = [each.hidden_BLD for each in begun]
        self._calls = [each.calls for each in begun]

    def outputs(self, layer: int) -> list[Tensor]:
        """What a layer that is in memory makes of the hidden states, batch by batch."""
        with torch.no_grad():
            return [
                self.run(layer, hidden_BLD, calls[layer])
                for hidden_BLD, calls in zip(self.hidden_BLD, self._calls, strict=True)
            ]

    def submodule_of(self, name: str) -> nn.Module:
        """The module that has a parameter."""
        return self.model.get_submodule(name.rpartition(".")[0])
