"""Tuning layer by layer towards the source, for models larger than memory.

Two streams of hidden states go through the layers: those of the source, and those of the model
that is tuned, with all layers before tuned already. Each block is trained towards the outputs that
`layer_goals` defines. In a third stream the held-out documents go through the model as it was, for
the divergence before.

One layer of the source or of the tuned model is in memory at a time. Streams and results are in
files, so that an interrupted tuning goes on with the layer where it stopped, to the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moe_export.artifacts.base import load_tensors, save_tensors
from moe_export.artifacts.tuning import TunedLayer
from moe_export.passes.layers import INPUT, Passes
from moe_export.recipe import TuneSettings
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.deterministic import deterministic
from moe_export.torch_model.layered import StreamedModel
from moe_export.tuning.layer_block import relative_error, take_steps
from moe_export.tuning.layer_documents import LayerDocuments
from moe_export.tuning.layer_goals import drop_goals, goals, put_goals
from moe_export.tuning.methods import Trained
from moe_export.tuning.rounding import rounded

TUNED, UNTUNED = "tuned", "untuned"
"""Kinds of states: of the tuned model, and of the model before; the source's are `INPUT`."""

DONE = "done"
"""Kind that marks a layer whose result and outputs are stored."""

ERRORS = "errors"
"""Name of the errors before and after among the tensors of a layer's file."""

Values = dict[str, NDArray[Any]]


@dataclass
class LayerTuning:
    """Tuning of a model layer by layer.

    Attributes:
        source: Passes of the source.
        model: Model that is tuned, with the source's embeddings, final norm and lm_head.
        documents: Documents with their weights.
        rule: Rule that says which tensors are trained.
        settings: Settings of the section.
        folder: Folder of the results to resume from.
        tell: Function called with layer and step before each step.
    """

    source: Passes
    model: StreamedModel
    documents: LayerDocuments
    rule: Trained
    settings: TuneSettings
    folder: Path
    tell: Callable[[int, int], None]
    passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        of = self.source
        self.passes = Passes(self.model, of.batches, of.states, of.calls)

    def run(self) -> tuple[Values, tuple[TunedLayer, ...]]:
        """Tunes all layers, and returns the trained tensors as they are stored, with an account.

        Raises:
            ResourceError: The disk is too small for the hidden states.
            CheckpointError: Activations are not finite, or weights become too large.
        """
        self.source.begin()
        values: Values = {}
        account = []
        for layer in range(self.model.spec.num_layers):
            of_layer = self._layer(layer)
            errors = of_layer.pop(ERRORS, None)
            if errors is not None:
                before, after = errors.tolist()
                account.append(TunedLayer(layer=layer, before=before, after=after))
            values |= of_layer
        return values, tuple(account)

    def _layer(self, layer: int) -> Values:
        """Trained tensors of a layer and its errors; loaded if the layer is done."""
        states, path = self.source.states, self.folder / f"layer-{layer}.safetensors"
        if states.finished(DONE, layer):
            return load_tensors(path)
        with deterministic(), torch.no_grad():
            values = self._tuned(layer)
        save_tensors(path, values)
        states.finish(DONE, layer)
        for kind in (INPUT, TUNED, UNTUNED):
            states.drop(kind, layer)
        drop_goals(self.source, layer)
        return values

    def _tuned(self, layer: int) -> Values:
        """Trained tensors of a layer, through which all streams go."""
        self.tell(layer, 0)
        with self.source.model.layer(layer):
            epsilon = self.model.spec.norm_epsilon
            put_goals(self.source, layer, _kind(TUNED, layer), self.documents.weights, epsilon)
        with self.model.layer(layer):
            untuned = (_kind(UNTUNED, layer), UNTUNED)
            self.passes.forward(layer, self.documents.judged, kinds=untuned)
            block = self.model.block(layer)
            values = {} if block is None else self._train(layer, block)
            self.passes.forward(layer, self.source.batches, kinds=(_kind(TUNED, layer), TUNED))
        return values

    def _train(self, layer: int, block: RaggedMoEBlock) -> Values:
        """Trains a block; one that is no better on held-out documents stays as it was."""
        parameters = self._parameters(layer)
        old = [parameter.clone() for parameter in parameters.values()]

        def error() -> float:
            held_out = (goals(self.source, layer, [n]) for n in self.documents.judged)
            return relative_error(block, held_out)

        before = error()
        take_steps(
            block,
            parameters,
            lambda step: goals(self.source, layer, self.documents.of_step(step)),
            self.documents.steps,
            self.settings,
            lambda step: self.tell(layer, step),
        )
        values = self._rounded(parameters)
        if not (after := error()) < before:
            for parameter, value in zip(parameters.values(), old, strict=True):
                parameter.copy_(value)
            values, after = self._rounded(parameters), before
        return values | {ERRORS: np.array([before, after])}

    def _parameters(self, layer: int) -> dict[str, nn.Parameter]:
        spec = self.model.spec
        names = (n for n in self.rule.names(spec) if spec.tensors[n].layer == layer)
        return {name: self.model.model.get_parameter(name) for name in names}

    def _rounded(self, parameters: dict[str, nn.Parameter]) -> Values:
        model = self.model
        return {n: rounded(n, p, model.checkpoint, model.spec) for n, p in parameters.items()}


def _kind(kind: str, layer: int) -> str:
    """Kind of a stream's states before a layer; all begin with the source's embeddings."""
    return kind if layer else INPUT
