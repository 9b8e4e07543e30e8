"""Sums of scores, one layer of the model at a time: forward over the calibration set, and back.

Going forward, the input of every layer is kept; going back, each layer is computed again from it,
and gradients go through it from its output to its input. No gradient of a weight is ever computed.

Legend: E experts, R rows (sum of widths), N routed pairs, B sequences of a batch, L positions,
D hidden, T = B * L, C scores of data, K sources.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_export.experts import ExpertTable
from moe_export.families.axis import Axis
from moe_export.passes.batches import Batch
from moe_export.passes.layers import INPUT, NormedBatch, Passes
from moe_export.passes.loss import Loss, loss_gradients
from moe_export.passes.states import States
from moe_export.scores.base import DataScore, ExpertBatch, ExpertWeights, Score, WeightScore
from moe_export.scores.needs import losses_of, states_at_once
from moe_export.scoring.layer_sums import LayerSums, Sums, load_sums, save_sums
from moe_export.scoring.source_weights import SourceWeights
from moe_export.system.progress import Progress
from moe_export.system.workers import Workers
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.layered import LayeredModel
from moe_export.torch_model.recording import Quantity, Recording, recording

SCORED = "scored"
"""Kind of state that marks a layer whose sums are written. Kinds beside `INPUT` are the losses, for
gradients at a layer's output."""

SAMPLING_SEED = 20260605
"""Seed of the tokens that the loss `sampled` draws from the model; any number would do."""

SHARED_TOKENS = 1024
"""Tokens of the shared expert that are scored at a time, or one longer sequence. It has all tokens
of a batch, and some scores compare every two of them.
"""


@dataclass
class Collector:
    """One call of `collect_importance`, which describes the other attributes.

    Attributes:
        sources: Sources of the sequences, with their weights.
        num_batches: Number of batches of all workers.
        own: Batches of this worker, by number.
        states: Hidden states and gradients of this worker.
        steps: Steps of progress so far.
        passes: Passes through the layers with this worker's batches.
    """

    model: LayeredModel
    axis: Axis
    scores: Sequence[Score]
    sources: SourceWeights
    num_batches: int
    own: dict[int, Batch]
    states: States
    folder: Path
    workers: Workers
    progress: Progress
    steps: int = 0
    passes: Passes = field(init=False)

    def __post_init__(self) -> None:
        self.passes = Passes(self.model, self.own, self.states)
        self.data_scores = [s for s in self.scores if isinstance(s, DataScore)]
        self.weight_scores = [s for s in self.scores if isinstance(s, WeightScore)]
        self.losses: tuple[Loss, ...] = losses_of(self.scores)
        self.differentiated = frozenset[Quantity](
            quantity for score in self.data_scores for quantity in score.gradients
        )
        self.kept = self.differentiated | frozenset[Quantity](
            quantity for score in self.data_scores for quantity in score.values
        )
        self.num_layers = len(self.model.layers)
        self.weight_CK = np.array([self.sources.of_score(score) for score in self.data_scores])

    @property
    def needed_bytes(self) -> int:
        """Disk space for hidden states and gradients of this worker's batches."""
        positions = sum(batch.tokens_BL.numel() for batch in self.own.values())
        state_bytes = positions * self.model.config.hidden_size * self.model.dtype.itemsize
        return int(state_bytes) * states_at_once(self.scores, self.num_layers)

    def check_space(self) -> None:
        """Makes sure that the disk has room for all states.

        Raises:
            ResourceError: the disk is too small.
        """
        self.states.check_space(self.needed_bytes)

    def run(self) -> list[LayerSums]:
        """Sums of every layer for the first of the workers; an empty list for the others."""
        self.passes.begin()
        if self.losses:
            self._forward()
            self._through_head()
            self._backward()
        else:
            self._forward_scoring()
        self.progress(self._all_steps, self._all_steps, "done")
        if self.workers.rank > 0:
            return []
        return [load_sums(self.folder, layer) for layer in range(self.num_layers)]

    def _forward(self) -> None:
        for layer in range(self.num_layers):
            if self.states.finished(INPUT, layer + 1) or self._scored_from(layer):
                self._tell(f"layer {layer}, forward", len(self.own))
                continue
            with self.model.layer(layer):
                self.passes.forward(layer, self.own, partial(self._tell, f"layer {layer}, forward"))
            self.states.finish(INPUT, layer + 1)

    def _forward_scoring(self) -> None:
        """Scores layers on the way forward, for scores without a loss."""
        done = sum(self.states.finished(SCORED, layer) for layer in range(self.num_layers))
        first = self.workers.least(done)
        self._tell("forward", first * len(self.own))
        for layer in range(first, self.num_layers):
            with self.model.layer(layer):
                self._score_layer(layer)
            self.states.drop(INPUT, layer - 1)

    def _through_head(self) -> None:
        if self.states.finished(self.losses[0], self.num_layers) or self._scored_from(
            self.num_layers - 1
        ):
            self._tell("head and loss", len(self.own))
            return
        with self.model.head() as (norm, head):
            for number, batch in self.own.items():
                self._tell("head and loss")
                state_BLD = self.passes.state(INPUT, self.num_layers, number)
                normed = NormedBatch(norm, state_BLD, batch.target_T.to(self.model.device))
                slopes = loss_gradients(
                    normed.hidden_TD,
                    head,
                    batch.gold_T.to(self.model.device),
                    batch.weight_T.to(self.model.device),
                    self.losses,
                    _draws(batch).to(self.model.device),
                )
                for loss in self.losses:
                    slope_BLD = normed.gradient(slopes[loss])
                    self.states.put(loss, self.num_layers, number, slope_BLD)
        for loss in reversed(self.losses):
            self.states.finish(loss, self.num_layers)

    def _backward(self) -> None:
        done = 0
        while done < self.num_layers and self._scored_from(self.num_layers - 1 - done):
            done += 1
        done = self.workers.least(done)
        self._tell("backward", done * len(self.own))
        for layer in reversed(range(self.num_layers - done)):
            with self.model.layer(layer):
                self._score_layer(layer)
            # The worker that is last may still be at the layer above, and be interrupted there.
            for kind in (INPUT, *self.losses):
                self.states.drop(kind, layer + 2)

    def _scored_from(self, layer: int) -> bool:
        """True if a layer has been scored, and so all layers above it."""
        return self.states.finished(SCORED, layer)

    def _score_layer(self, layer: int) -> None:
        """Adds up the batches of all workers, in their order."""
        table = self.axis.tables[layer]
        experts = _experts(self.model.block(layer), table)
        num_sources = len(self.sources.token_weight_K)
        empty = partial(Sums.zeros, len(self.data_scores), table.rows, num_sources, len(experts))
        total = empty()
        for first in range(0, self.num_batches, self.workers.size):
            number = first + self.workers.rank
            part = empty()
            if number in self.own:
                self._tell(f"layer {layer}, scoring")
                self._score_batch(layer, number, experts, table, part)
            for flat in self.workers.gather(part.flat):
                np.add(total.flat, flat, out=total.flat)
        for loss in self.losses:
            self.states.finish(loss, layer)
        if not self.losses:
            self.states.finish(INPUT, layer + 1)
        if self.workers.rank == 0:
            weights = {
                score.name: np.concatenate([score.measure(w).cpu().numpy() for w in experts])
                for score in self.weight_scores
                if experts
            }
            layer_sums = LayerSums(
                widths_E=np.array(table.widths, np.int64),
                sums_CR=total.sums_CR,
                sources_KCE=total.sources_KCE,
                tokens_E=total.tokens_E.astype(np.int64),
                weight_E=total.weight_E,
                weights=weights,
            )
            save_sums(self.folder, layer, layer_sums)
        self.states.finish(SCORED, layer)

    def _score_batch(
        self,
        layer: int,
        number: int,
        experts: tuple[ExpertWeights, ...],
        table: ExpertTable,
        sums: Sums,
    ) -> None:
        """Adds one batch to the sums, and writes the states or gradients that go on from here."""
        batch, device = self.own[number], self.model.device
        state_BLD = self.passes.state(INPUT, layer, number)
        state_BLD.requires_grad_(bool(self.losses))
        with recording(
            self.model.layers[layer], self.kept, self.differentiated, shared=self.axis.has_shared
        ) as made:
            output_BLD = self.passes.run(layer, number, state_BLD)
            gradients = self._gradients(layer, number, state_BLD, output_BLD, made)
        if not self.losses:
            self.states.put(INPUT, layer + 1, number, output_BLD)
        real_T, sequence_T = batch.real_T.to(device), batch.sequence_T.to(device)
        index_B = batch.index_B.numpy()
        source_B = torch.from_numpy(self.sources.source_S[index_B]).to(device)
        targets_B = torch.from_numpy(self.sources.targets_S[index_B]).to(device)
        for trace in made.layers.get(layer, []):
            real_N = real_T[trace.token_N]
            view = ExpertBatch(
                weights=experts[trace.expert],
                num_sequences=len(batch.tokens_BL),
                targets_S=targets_B,
                sequence_N=sequence_T[trace.token_N][real_N],
                routing_N=trace.routing_N.detach()[real_N],
                values={name: value.detach()[real_N] for name, value in trace.values.items()},
                gradients={
                    loss: {name: next(values)[real_N] for name in sorted(self.differentiated)}
                    for loss, values in gradients.items()
                },
            )
            self._add(view, source_B, trace.expert, table, sums)

    def _add(
        self, view: ExpertBatch, source_B: Tensor, expert: int, table: ExpertTable, sums: Sums
    ) -> None:
        """Adds the tokens of one expert to the sums, those of each source with its weight."""
        rows, is_shared = table.slice_of(expert), expert == self.axis.spec.num_experts
        for source, own in view.by_source(source_B):
            sums.tokens_E[expert] += len(own.sequence_N)
            sums.weight_E[expert] += len(own.sequence_N) * self.sources.token_weight_K[source]
            for part in own.split(SHARED_TOKENS) if is_shared else (own,):
                for number, score in enumerate(self.data_scores):
                    value_W = score.measure(part).cpu().numpy() * self.weight_CK[number, source]
                    sums.sums_CR[number, rows] += value_W
                    sums.sources_KCE[source, number, expert] += value_W.sum()

    def _gradients(
        self, layer: int, number: int, state_BLD: Tensor, output_BLD: Tensor, made: Recording
    ) -> dict[Loss, Iterator[Tensor]]:
        """Gradients of every trace in order, its quantities sorted by name, for each loss. The
        gradient of the layer's input is written for the layer before.
        """
        recorded = [
            trace.values[name]
            for trace in made.layers.get(layer, [])
            for name in sorted(self.differentiated)
        ]
        gradients: dict[Loss, Iterator[Tensor]] = {}
        for loss in self.losses:
            *values, slope_BLD = torch.autograd.grad(
                output_BLD,
                [*recorded, state_BLD],
                self.passes.state(loss, layer + 1, number),
                retain_graph=loss != self.losses[-1],
            )
            gradients[loss] = iter(values)
            self.states.put(loss, layer, number, slope_BLD)
        return gradients

    @property
    def _all_steps(self) -> int:
        return len(self.own) * (2 * self.num_layers + 1 if self.losses else self.num_layers)

    def _tell(self, what: str, steps: int = 1) -> None:
        if steps:
            self.progress(self.steps, self._all_steps, what)
            self.steps += steps


def _draws(batch: Batch) -> Tensor:
    """Uniform numbers for the targets of a batch, which depend on a sequence's tokens alone."""
    counts = torch.bincount(batch.sequence_T[batch.target_T], minlength=len(batch.index_B))
    draws = []
    for tokens_L, count in zip(batch.tokens_BL.numpy(), counts.tolist(), strict=True):
        digest = zlib.crc32(tokens_L[: count + 1].tobytes())
        draws.append(np.random.default_rng((SAMPLING_SEED, digest)).random(count))
    return torch.from_numpy(np.concatenate(draws))


def _experts(block: RaggedMoEBlock | None, table: ExpertTable) -> tuple[ExpertWeights, ...]:
    """The weights of a layer's experts on the axis."""
    if block is None:
        return ()
    return tuple(
        ExpertWeights(block.layer, number, *(matrix.weight.detach() for matrix in expert))
        for number, expert in enumerate(block.all_experts[: len(table.widths)])
    )
