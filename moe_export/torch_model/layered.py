"""Model that is run one decoder layer at a time, so that only one layer needs to be in memory.

Legend: B sequences of a batch, L positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moe_export.families import spec_of
from moe_export.system.memory import trim
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.load import (
    dtype_of,
    empty_model,
    extended_checkpoint,
    stored_or_neutral,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerCall:
    """Arguments that the model passes to a layer besides the hidden states: masks, positions."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class EmbeddedBatch:
    """Batch before its first layer.

    Attributes:
        hidden_BLD: Embeddings of the tokens.
        calls: Arguments of each layer, one entry per layer.
    """

    hidden_BLD: Tensor
    calls: tuple[LayerCall, ...]


class LayeredModel:
    """Model in memory, with access to its parts layer by layer.

    Args:
        model: Result of `load_torch_model`, on any device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def config(self) -> Any:
        """Config of transformers."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Device that the model computes on."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters in memory."""
        return self.model.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers in order."""
        return self.model.base_model.layers

    def block(self, layer: int) -> RaggedMoEBlock | None:
        """MoE block of a layer; None if the layer has no experts."""
        blocks = (m for m in self.layers[layer].modules() if isinstance(m, RaggedMoEBlock))
        return next(blocks, None)

    def begin(self, batches: Iterable[Tensor]) -> Iterator[EmbeddedBatch]:
        """Embeds batches of token ids [B, L], without an attention mask.

        The model itself runs, with layers that only store their arguments. So this code does not
        depend on how a family computes its masks and positions.
        """
        calls: list[LayerCall] = []
        embedded: list[Tensor] = []

        def remember(hidden: Tensor, *positional: Any, **named: Any) -> Tensor:
            if not calls:
                embedded[:] = [hidden]
            calls.append(LayerCall(positional, named))
            # Some models of transformers 4 take the first element of a layer's result.
            return embedded[0][None]

        base = self.model.base_model
        norm_name, norm = self._final_norm
        with self._loaded(self._outside_names("embedding")), torch.no_grad():
            try:
                setattr(base, norm_name, nn.Identity())
                for layer in self.layers:
                    layer.forward = remember
                for ids_BL in batches:
                    calls.clear()
                    base(input_ids=ids_BL.to(self.device), use_cache=False)
                    yield EmbeddedBatch(embedded[0], tuple(calls))
            finally:
                setattr(base, norm_name, norm)
                for layer in self.layers:
                    del layer.forward

    @contextmanager
    def layer(self, number: int) -> Iterator[nn.Module]:
        """Loads the weights of a decoder layer for the duration of a `with` block."""
        with self._loaded(self._layer_names(number)):
            yield self.layers[number]

    @contextmanager
    def head(self) -> Iterator[tuple[nn.Module, nn.Linear]]:
        """Loads the final norm and the lm_head for the duration of a `with` block."""
        with self._loaded(self._outside_names("final_norm", "lm_head")):
            yield self._final_norm[1], self.model.get_output_embeddings()

    def run(self, number: int, hidden_BLD: Tensor, call: LayerCall) -> Tensor:
        """Output [B, L, D] of a layer that is in memory."""
        output: Tensor | tuple[Tensor, ...] = self.layers[number](
            hidden_BLD, *call.positional, **call.named
        )
        return output[0] if isinstance(output, tuple) else output  # transformers 4

    def states(self, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Hidden states [B, L, D] of batches of token ids: the embeddings, then after each layer.

        All batches go through a layer before the next layer is loaded.
        """
        embedded = list(self.begin(batches))
        states = [each.hidden_BLD for each in embedded]
        yield states
        for number in range(len(self.layers)):
            with self.layer(number), torch.no_grad():
                states = [
                    self.run(number, state, each.calls[number])
                    for state, each in zip(states, embedded, strict=True)
                ]
            yield states

    @property
    def _final_norm(self) -> tuple[str, nn.Module]:
        """Norm after the last layer, and its name in the base model."""
        name = spec_of(self.config.to_dict()).name("final_norm").split(".")[-2]
        return name, getattr(self.model.base_model, name)

    @contextmanager
    def _loaded(self, _names: dict[str, str]) -> Iterator[None]:
        yield

    def _layer_names(self, _number: int) -> dict[str, str]:
        return {}

    def _outside_names(self, *_roles: str) -> dict[str, str]:
        return {}


class StreamedModel(LayeredModel):
    """Model on the CPU whose weights are read from the checkpoint when needed, and freed after.

    Args:
        directory: Checkpoint of a known family, pruned and quantized or not.
        dtype: Dtype of the parameters in memory; stored values are converted.
        top_k: Experts per token, in place of the config's; None to keep those.
        added: Config keys that the checkpoint lacks, as for `load_torch_model`.

    Raises:
        RecipeError: `top_k` is more than the model's.
        CheckpointError: A file or tensor is missing, damaged, unknown or superfluous.
    """

    def __init__(
        self,
        directory: Path,
        dtype: torch.dtype,
        top_k: int | None = None,
        added: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.checkpoint, self.spec = extended_checkpoint(directory, top_k, added)
        super().__init__(empty_model(self.checkpoint, self.spec, dtype))
        self._dtype = dtype

    @property
    def device(self) -> torch.device:
        """CPU device."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters in memory."""
        return self._dtype

    @contextmanager
    def _loaded(self, names: dict[str, str]) -> Iterator[None]:
        """Fills parameters with tensors of the checkpoint, and empties them again afterwards.

        Args:
            names: Name of the stored tensor for each parameter's name.
        """
        empty = {}
        try:
            for name, stored in names.items():
                values = stored_or_neutral(self.checkpoint, self.spec, stored)
                path, _, last = name.rpartition(".")
                module = self.model.get_submodule(path)
                empty[name] = getattr(module, last)
                dtype = dtype_of(self.spec.tensors[stored], self._dtype)
                setattr(module, last, nn.Parameter(values.to(dtype), requires_grad=False))
            yield
        finally:
            for name, parameter in empty.items():
                path, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(path), last, parameter)
            trim()

    def _layer_names(self, number: int) -> dict[str, str]:
        return {name: name for name, t in self.spec.tensors.items() if t.layer == number}

    def _outside_names(self, *roles: str) -> dict[str, str]:
        wanted = {*roles, *(f"{role}_bias" for role in roles)}
        names = {
            name: name
            for name, tensor in self.spec.tensors.items()
            if tensor.layer is None and tensor.role in wanted
        }
        if "lm_head" in roles and self.spec.tied_embeddings:
            names[self.spec.name("lm_head")] = self.spec.name("embedding")
        return names
