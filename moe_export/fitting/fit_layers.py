"""Fitting of the kept weights of a pruned model, layer by layer.

Two streams of hidden states go through the layers: those of the unpruned model, and those of the
pruned model with all layers before fitted. In each layer the kept weights of the MoE block are
fitted to the outputs that `block_data` defines (`fit_block`), and go on in the second stream.

The streams are in files, and so is each fitted layer, so that an interrupted fit resumes with the
layer where it stopped and gives the same bytes.

Legend: T real tokens of all batches, B sequences of a batch, L positions, D hidden, S sequences.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec
from moe_export.fitting.block_data import BlockData
from moe_export.fitting.compact import Kept, compact_block, in_place_of
from moe_export.fitting.fit_block import FitRule, fit_block
from moe_export.fitting.fit_tokens import FitTokens
from moe_export.fitting.fitted_layer import FittedLayer
from moe_export.fitting.limits import STATES_AT_ONCE
from moe_export.fitting.refit import ExpertTokens, tokens_by_expert
from moe_export.passes.carried import BATCH_TOKENS
from moe_export.passes.layers import INPUT, Passes
from moe_export.passes.states import States
from moe_export.passes.watched import watched
from moe_export.system.progress import Progress, silent
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.deterministic import deterministic
from moe_export.torch_model.layered import StreamedModel
from moe_export.torch_model.load import to_torch

PRUNED = "pruned"
"""Kind of states of the pruned model; those of the unpruned one are `INPUT`."""

FITTED = "fitted"
"""Kind of state that marks a layer whose result and outputs are stored."""


def fit_layers(
    directory: Path,
    pruned: ModelSpec,
    kept: Kept,
    tokens: FitTokens,
    rule: FitRule,
    folder: Path,
    progress: Progress = silent,
) -> Iterator[FittedLayer]:
    """Fits the layers of a checkpoint in order.

    An expert is fitted if some but not all of its dimensions are kept, and at least twice as many
    tokens reach it as it keeps dimensions. Nothing is fitted with a single sequence, because none
    could be held out.

    Args:
        directory: Unpruned checkpoint.
        pruned: Sizes of the pruned model.
        kept: Positions of the kept dimensions.
        tokens: Calibration sequences with their weights.
        rule: Settings of the fit.
        folder: Folder of the files to resume from, which may be removed afterwards.
        progress: Function that reports every layer.

    Yields:
        Result of each layer, in order.

    Raises:
        ResourceError: The disk is too small for the hidden states.
        CheckpointError: Activations are not finite.
    """
    fits = begun(directory, pruned, kept, tokens, rule, folder)
    for layer in range(fits.model.spec.num_layers):
        progress(layer, fits.model.spec.num_layers, f"layer {layer}, fitting")
        yield fits.layer(layer)


def begun(
    directory: Path,
    pruned: ModelSpec,
    kept: Kept,
    tokens: FitTokens,
    rule: FitRule,
    folder: Path,
) -> LayerFits:
    """Fit before its first layer; `fit_layers` describes the arguments and errors."""
    training, held_out = tokens.divided()
    batches = dict(enumerate((*training.batches(), *held_out.batches())))
    model, states = StreamedModel(directory, torch.float32), States(folder)
    positions = sum(batch.tokens_BL.numel() for batch in batches.values())
    states.check_space(4 * model.spec.hidden_size * positions * STATES_AT_ONCE)
    weight_T = training.weights()
    fits = LayerFits(
        model,
        batches,
        states,
        pruned=pruned,
        kept=kept,
        rule=rule,
        folder=folder,
        weight_T=torch.cat([weight_T, held_out.weights()]),
        training_tokens=len(weight_T),
    )
    fits.begin()
    return fits


@dataclass
class LayerFits(Passes):
    """Passes of the fit; `fit_layers` describes the other attributes."""

    model: StreamedModel
    pruned: ModelSpec = field(kw_only=True)
    kept: Kept = field(kw_only=True)
    rule: FitRule = field(kw_only=True)
    folder: Path = field(kw_only=True)
    weight_T: Tensor = field(kw_only=True)
    training_tokens: int = field(kw_only=True)

    def layer(self, layer: int) -> FittedLayer:
        """Fits one layer, or loads its result if that is stored."""
        if self.states.finished(FITTED, layer):
            return FittedLayer.load(self.folder, layer)
        with self.model.layer(layer), torch.no_grad(), deterministic():
            whole = self.model.block(layer)
            result = self._forward(layer) if whole is None else self._fit(layer, whole)
        result.save(self.folder, layer)
        self.states.finish(FITTED, layer)
        self.states.drop(INPUT, layer)
        self.states.drop(PRUNED, layer)
        return result

    def _forward(self, layer: int) -> FittedLayer:
        """Takes both streams through a layer without experts."""
        self.forward(layer, self.batches)
        self.forward(layer, self.batches, kinds=(self._kind(layer), PRUNED))
        return FittedLayer()

    def _fit(self, layer: int, whole: RaggedMoEBlock) -> FittedLayer:
        data = self.data(layer, whole)
        block = compact_block(whole, self.pruned, self.kept)
        experts = [
            expert
            for expert in tokens_by_expert(block, data.x_TD)
            if (layer, expert.number) in self.kept
        ]
        result = FittedLayer(tokens=[len(expert.token_N) for expert in experts])
        fitted = frozenset(expert.number for expert in experts if self._is_fitted(layer, expert))
        if fitted and self.training_tokens < len(data):
            with _trainable_only(block, data, self.kept):
                outcome = fit_block(
                    block,
                    data.rows(slice(self.training_tokens)),
                    data.rows(slice(self.training_tokens, None)),
                    fitted,
                    self.rule,
                    lambda: self._round(block),
                )
            changed = {id(weight) for weight in outcome.changed}
            tensors = {
                name: weight.numpy()
                for name, weight in self._weights(block)
                if id(weight) in changed
            }
            result = replace(result, tensors=tensors, errors=outcome.errors)
        del data
        with in_place_of(whole, block):
            self.forward(layer, self.batches, kinds=(self._kind(layer), PRUNED))
        return result

    def data(self, layer: int, whole: RaggedMoEBlock) -> BlockData:
        """Takes both streams through the unpruned layer, and stores the unpruned model's."""
        spec = self.model.spec
        x_TD = torch.empty(len(self.weight_T), spec.hidden_size)
        wanted_TD, square_T = torch.empty_like(x_TD), torch.empty(len(x_TD))
        start = 0
        for number, batch in self.batches.items():
            goal_BLD = self.run(layer, number, self.state(INPUT, layer, number))
            self.states.put(INPUT, layer + 1, number, goal_BLD)
            with watched(whole) as seen:
                state_BLD = self.run(layer, number, self.state(self._kind(layer), layer, number))
            wanted_BLD = seen.output + self.rule.mix * (goal_BLD - state_BLD)
            rows = slice(start, start + int(batch.real_T.sum()))
            x_TD[rows] = seen.x.flatten(0, -2)[batch.real_T]
            wanted_TD[rows] = wanted_BLD.flatten(0, -2)[batch.real_T]
            square_T[rows] = goal_BLD.square().mean(-1).flatten()[batch.real_T]
            start = rows.stop
        weight_T = self.weight_T / (square_T + spec.norm_epsilon)
        data = BlockData(x_TD, wanted_TD, weight_T / weight_T.mean())
        if not data.is_finite():
            raise CheckpointError(
                f"layer {layer}: activations on the calibration set are not finite in float32, so "
                "that no weights can be fitted; look for values in the checkpoint that are far "
                "too large, or set prune.refit and prune.distill_blocks to false"
            )
        return data

    def _kind(self, layer: int) -> str:
        """Kind of the pruned model's states; both models have the same embeddings."""
        return PRUNED if layer else INPUT

    def _is_fitted(self, layer: int, expert: ExpertTokens) -> bool:
        spec = self.model.spec
        is_shared = expert.number == spec.num_experts
        width = spec.shared_widths[layer] if is_shared else spec.widths[layer][expert.number]
        return len(self.kept[layer, expert.number]) < (width or 0) and expert.is_enough()

    def _weights(self, block: RaggedMoEBlock) -> Iterator[tuple[str, nn.Parameter]]:
        """Names in the checkpoint and weights of the router and the experts on the axis."""
        spec, layer = self.model.spec, block.layer
        yield spec.name("router", layer), block.router.weight
        for number, expert in enumerate(block.all_experts):
            is_shared = number == spec.num_experts
            if (layer, number) not in self.kept:
                continue
            for role, matrix in zip(("gate", "up", "down"), expert, strict=True):
                shared_name = (f"shared_{role}", layer)
                yield (
                    spec.name(*(shared_name if is_shared else (role, layer, number))),
                    matrix.weight,
                )

    def _round(self, block: RaggedMoEBlock) -> None:
        """Rounds weights to the dtypes that they are stored in."""
        for name, weight in self._weights(block):
            stored = weight.numpy().astype(self.model.checkpoint.tensors[name].dtype)
            weight.copy_(to_torch(stored))


@contextmanager
def _trainable_only(block: RaggedMoEBlock, data: BlockData, kept: Kept) -> Iterator[None]:
    """Takes a shared expert that is not pruned out of a block and of its wanted outputs, so that it
    is not computed again and again.
    """
    shared = block.shared
    if shared is None or (block.layer, len(block.routed)) in kept:
        yield
        return
    for part in data.parts(BATCH_TOKENS):
        output_ND = shared[0].forward(part.x_TD, lambda _, value: value)
        part.wanted_TD.sub_(block.shared_weight(part.x_TD) * output_ND)
    block.shared = None
    try:
        yield
    finally:
        block.shared = shared
