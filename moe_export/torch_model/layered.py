"""A model run one decoder layer at a time, so that only one needs to be in memory.

Legend: B sequences of a batch, L positions, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moe_export.families import open_checkpoint
from moe_export.families.stored import read_values
from moe_export.system.memory import trim
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.load import empty_model, to_torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerCall:
    """What the model hands to a layer beside the hidden states: masks, positions."""

    positional: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Begun:
    """A batch before its first layer.

    Attributes:
        hidden_BLD: the embeddings.
        calls: per layer.
    """

    hidden_BLD: Tensor
    calls: tuple[LayerCall, ...]


class LayeredModel:
    """The parts of a model that is in memory, for those who go through it layer by layer.

    Args:
        model: as `load_torch_model` gives it, on any device.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    def config(self) -> Any:
        """That of transformers."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return self.model.dtype

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        return self.model.base_model.layers

    def block(self, layer: int) -> RaggedMoEBlock | None:
        """The experts of a layer, if it has any."""
        found = [m for m in self.layers[layer].modules() if isinstance(m, RaggedMoEBlock)]
        return found[0] if found else None

    def begin(self, batches: Iterable[Tensor]) -> Iterator[Begun]:
        """Embeds batches of token ids [B, L], without an attention mask.

        The model itself is run, with layers that do nothing but remember what they were called
        with, so that nothing here needs to know how a family makes its masks and positions.
        """
        made: list[LayerCall] = []
        embedded: list[Tensor] = []

        def remember(hidden: Tensor, *positional: Any, **named: Any) -> Tensor:
            if not made:
                embedded[:] = [hidden]
            made.append(LayerCall(positional, named))
            # Some models of transformers 4 take the first of what a layer returns.
            return embedded[0][None]

        base = self.model.base_model
        norm = base.norm
        with self._loaded(self._outside_layers("embedding")), torch.no_grad():
            try:
                base.norm = nn.Identity()
                for layer in self.layers:
                    layer.forward = remember
                for ids_BL in batches:
                    made.clear()
                    base(input_ids=ids_BL.to(self.device), use_cache=False)
                    yield Begun(embedded[0], tuple(made))
            finally:
                base.norm = norm
                for layer in self.layers:
                    del layer.forward

    @contextmanager
    def layer(self, number: int) -> Iterator[nn.Module]:
        """A decoder layer whose weights are in memory meanwhile."""
        with self._loaded(self._of_layer(number)):
            yield self.layers[number]

    @contextmanager
    def head(self) -> Iterator[tuple[nn.Module, nn.Linear]]:
        """The final norm, and what maps its output to logits, in memory meanwhile."""
        with self._loaded(self._outside_layers("final_norm", "lm_head")):
            yield self.model.base_model.norm, self.model.get_output_embeddings()

    def run(self, number: int, hidden_BLD: Tensor, call: LayerCall) -> Tensor:
        """The output of a layer that is in memory, [B, L, D]."""
        output: Tensor | tuple[Tensor, ...] = self.layers[number](
            hidden_BLD, *call.positional, **call.named
        )
        return output[0] if isinstance(output, tuple) else output  # transformers 4

    def states(self, batches: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Hidden states [B, L, D] of batches of token ids: embedded, and after each layer.

        Every batch goes through a layer before the next layer is loaded.
        """
        begun = list(self.begin(batches))
        states = [each.hidden_BLD for each in begun]
        yield states
        for number in range(len(self.layers)):
            with self.layer(number), torch.no_grad():
                states = [
                    self.run(number, state, each.calls[number])
                    for state, each in zip(states, begun, strict=True)
                ]
            yield states

    @contextmanager
    def _loaded(self, _names: dict[str, str]) -> Iterator[None]:
        yield

    def _of_layer(self, _number: int) -> dict[str, str]:
        return {}

    def _outside_layers(self, *_roles: str) -> dict[str, str]:
        return {}


class StreamedModel(LayeredModel):
    """A model whose weights stay in the checkpoint until they are needed, and leave memory after.

    It computes on the CPU.

    Args:
        directory: a checkpoint of a known family, pruned and quantized or not.
        dtype: of the parameters in memory; what is stored is converted.

    Raises:
        CheckpointError: whatever is missing, damaged, unknown or left over.
    """

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.checkpoint, self.spec = open_checkpoint(directory)
        super().__init__(empty_model(self.checkpoint, self.spec, dtype))
        self._dtype = dtype

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return self._dtype

    @contextmanager
    def _loaded(self, names: dict[str, str]) -> Iterator[None]:
        """Parameters of the model, by name, with the values of tensors of the checkpoint."""
        empty = {}
        try:
            for name, stored in names.items():
                values = read_values(self.checkpoint, self.spec, stored)
                path, _, last = name.rpartition(".")
                module = self.model.get_submodule(path)
                empty[name] = getattr(module, last)
                parameter = to_torch(values).to(self._dtype)
                setattr(module, last, nn.Parameter(parameter, requires_grad=False))
            yield
        finally:
            for name, parameter in empty.items():
                path, _, last = name.rpartition(".")
                setattr(self.model.get_submodule(path), last, parameter)
            trim()

    def _of_layer(self, number: int) -> dict[str, str]:
        return {name: name for name, t in self.spec.tensors.items() if t.layer == number}

    def _outside_layers(self, *roles: str) -> dict[str, str]:
        wanted = {*roles, *(f"{role}_bias" for role in roles)}
        names = {
            name: name
            for name, tensor in self.spec.tensors.items()
            if tensor.layer is None and tensor.role in wanted
        }
        if "lm_head" in roles and self.spec.tied_embeddings:
            names[self.spec.name("lm_head")] = self.spec.name("embedding")
        return names
