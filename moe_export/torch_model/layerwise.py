"""A model run one decoder layer after the other, with the weights of one layer in memory.

Legend: B sequences of a batch, L its longest length, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_export.checkpoint import Checkpoint
from moe_export.families import check_ledger, spec_of
from moe_export.families.stored import read_values
from moe_export.scores.batches import Batch
from moe_export.torch_model.load import model_without_weights, to_torch

BATCH_TOKENS = 4096
"""Positions of a batch, padding included."""


class _Reached(Exception):  # noqa: N818 - no error: how a forward pass is left half-way
    """The first layer was reached."""


class LayerwiseModel:
    """The hidden states of a set of batches, carried through the layers.

    Args:
        directory: of a checkpoint, pruned or not.
        batches: what is run.
    """

    def __init__(self, directory: Path, batches: Sequence[Batch]) -> None:
        self._checkpoint = Checkpoint(directory)
        self.spec = spec_of(self._checkpoint.config)
        check_ledger(self._checkpoint, self.spec)
        self.model: Any = model_without_weights(self._checkpoint, self.spec)
        self.batches = batches
        self._arguments: list[dict[str, Any]] = []
        self.hidden_BLD: list[Tensor] = []
        with self.loaded(None):
            self._embed()

    @contextmanager
    def loaded(self, layer: int | None) -> Iterator[nn.Module]:
        """The weights of a layer, or of what is in no layer, in memory meanwhile.

        Yields:
            The decoder layer, or the whole model.
        """
        tensors = {
            name: to_torch(read_values(self._checkpoint, self.spec, name)).float()
            for name, tensor in self.spec.tensors.items()
            if tensor.layer == layer
        }
        if layer is None and self.spec.tied_embeddings:
            tensors[self.spec.name("lm_head")] = tensors[self.spec.name("embedding")]
        self.model.load_state_dict(tensors, strict=False, assign=True)
        part = self.model if layer is None else self.model.base_model.layers[layer]
        try:
            yield part.requires_grad_(False)
        finally:
            unloaded = {name: values.to("meta") for name, values in tensors.items()}
            self.model.load_state_dict(unloaded, strict=False, assign=True)

    def run(self, layer: nn.Module) -> list[Tensor]:
        """What a loaded layer makes of the hidden states, batch by batch."""
        outputs = []
        with torch.no_grad():
            for hidden_BLD, arguments in zip(self.hidden_BLD, self._arguments, strict=True):
                output = layer(hidden_BLD, **arguments)
                # transformers 4 gives a tuple.
                outputs.append(output[0] if isinstance(output, tuple) else output)
        return outputs

    def _embed(self) -> None:
        """Takes the hidden states, and what else every layer is called with, from the model itself,
        which is left when it calls its first layer.
        """

        def reached(_layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            rest = dict(named)
            self.hidden_BLD.append(positional[0] if positional else rest.pop("hidden_states"))
            self._arguments.append(rest)
            raise _Reached

        handle = self.model.base_model.layers[0].register_forward_pre_hook(
            reached, with_kwargs=True
        )
        try:
            for batch in self.batches:
                with torch.no_grad():
                    try:
                        self.model.base_model(input_ids=batch.tokens_BL, use_cache=False)
                    except _Reached:
                        continue
        finally:
            handle.remove()
