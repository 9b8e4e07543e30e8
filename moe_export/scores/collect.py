"""Computing scores: one forward pass over the calibration set, one backward pass per loss.

Legend: E experts, R rows (sum of widths), W width of one expert, N routed pairs, T positions of a
batch, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_export.artifacts import Calibration, Importance
from moe_export.errors import CalibrationError, MoeExportError
from moe_export.experts import ExpertTable
from moe_export.jobs import Progress, silent
from moe_export.scores.base import DataScore, ExpertBatch, ExpertWeights, Loss, Score, WeightScore
from moe_export.scores.batches import Batch, batches_of
from moe_export.scores.loss import loss_gradients
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.recording import ExpertTrace, Quantity, recording

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Gradients = dict[Loss, Iterator[Tensor]]


@dataclass(frozen=True)
class _Layer:
    """What is known of a layer so far."""

    number: int
    experts: tuple[ExpertWeights, ...]
    table: ExpertTable
    sums: dict[str, NDArray[np.float64]]
    tokens_E: NDArray[np.int64]


def collect_importance(
    model: PreTrainedModel,
    calibration: Calibration,
    scores: Sequence[Score],
    batch_tokens: int,
    progress: Progress = silent,
) -> Importance:
    """Scores every dimension of every routed expert.

    Sums are in float64 and in a fixed order, so that the same call gives the same bytes.

    Args:
        model: as `load_torch_model` gives it, on any device.
        calibration: the sequences; no loss is taken on the first token of each.
        scores: at least one.
        batch_tokens: positions of a batch, padding included; a longer sequence is a batch alone.
        progress: told of every batch.

    Raises:
        CalibrationError: there is no sequence, or one of them does not suit the model.
        MoeExportError: a score is not a number.
    """
    sequences = calibration.sequences()
    _check_sequences(sequences, model)
    data_scores = [score for score in scores if isinstance(score, DataScore)]
    layers = [_empty_layer(block, data_scores) for block in _blocks(model)]
    batches = batches_of(sequences, batch_tokens)
    with _deterministic():
        for done, batch in enumerate(batches):
            progress(done, len(batches), "scoring calibration batches")
            _add_batch(model, batch, data_scores, layers)
    progress(len(batches), len(batches), "scoring calibration batches")
    totals = {"sequences": len(sequences), "tokens": len(calibration.tokens_N)}
    by_number = {layer.number: layer for layer in layers}
    numbers = range(model.config.num_hidden_layers)
    nothing = _Layer(0, (), ExpertTable(()), {}, np.zeros(0, dtype=np.int64))
    every = [by_number.get(number, nothing) for number in numbers]
    return Importance(
        scores={
            score.name: [
                _finished(score, layer, totals) if layer.experts else np.zeros(0) for layer in every
            ]
            for score in scores
        },
        tokens_per_expert=[layer.tokens_E for layer in every],
    )


def _add_batch(
    model: PreTrainedModel, batch: Batch, scores: list[DataScore], layers: list[_Layer]
) -> None:
    device = model.device
    losses = tuple(dict.fromkeys(score.loss for score in scores if score.loss is not None))
    kept = frozenset[Quantity](
        quantity for score in scores for quantity in (*score.values, *score.gradients)
    )
    differentiated = frozenset[Quantity](q for score in scores for q in score.gradients)
    with recording(model, kept, differentiated) as made:
        hidden_TD = model.base_model(
            input_ids=batch.tokens_BL.to(device), use_cache=False
        ).last_hidden_state.flatten(0, 1)
        traces = [(layer, trace) for layer in layers for trace in made.layers[layer.number]]
        gradients = _gradients(model, batch, hidden_TD, traces, losses, differentiated)
    real_T, sequence_T = batch.real_T.to(device), batch.sequence_T.to(device)
    for layer, trace in traces:
        weights = layer.experts[trace.expert]
        real_N = real_T[trace.token_N]
        view = ExpertBatch(
            weights=weights,
            num_sequences=len(batch.tokens_BL),
            sequence_N=sequence_T[trace.token_N][real_N],
            routing_N=trace.routing_N.detach()[real_N],
            values={name: value.detach()[real_N] for name, value in trace.values.items()},
            gradients={
                loss: {name: next(found)[real_N] for name in sorted(differentiated)}
                for loss, found in gradients.items()
            },
        )
        layer.tokens_E[trace.expert] += int(real_N.sum())
        rows = layer.table.slice_of(trace.expert)
        for score in scores:
            layer.sums[score.name][rows] += score.measure(view).cpu().numpy()


def _gradients(
    model: PreTrainedModel,
    batch: Batch,
    hidden_TD: Tensor,
    traces: list[tuple[_Layer, ExpertTrace]],
    losses: tuple[Loss, ...],
    differentiated: frozenset[Quantity],
) -> Gradients:
    """For each loss the gradients of every trace, in order, its quantities sorted by name."""
    recorded = [trace.values[name] for _, trace in traces for name in sorted(differentiated)]
    if not losses:
        return {}
    device = hidden_TD.device
    target_T = batch.target_T.to(device)
    head = model.get_output_embeddings()
    found = loss_gradients(
        hidden_TD[target_T], head, batch.gold_T.to(device), batch.weight_T.to(device), losses
    )
    gradients: Gradients = {}
    for loss in losses:
        slope_TD = torch.zeros_like(hidden_TD)
        slope_TD[target_T] = found[loss]
        again = loss != losses[-1]
        gradients[loss] = iter(
            torch.autograd.grad(hidden_TD, recorded, slope_TD, retain_graph=again)
        )
    return gradients


def _finished(score: Score, layer: _Layer, totals: dict[str, int]) -> NDArray[np.float64]:
    if isinstance(score, WeightScore):
        parts = [score.measure(weights).cpu().numpy() for weights in layer.experts]
        value_R = np.concatenate(parts)
    else:
        assert isinstance(score, DataScore)
        tokens_R = layer.tokens_E[layer.table.owner_R]
        value_R = layer.sums[score.name]
        if score.mean_over == "routed_tokens":
            value_R = value_R / np.maximum(tokens_R, 1)
        elif score.mean_over is not None:
            value_R = value_R / totals[score.mean_over]
    bad = int(np.count_nonzero(~np.isfinite(value_R)))
    if bad:
        raise MoeExportError(
            f"layer {layer.number}: score {score.name} has {bad} values that are not finite; the "
            "model overflows on the calibration set, set importance.dtype: float32"
        )
    if isinstance(score, DataScore) and not score.known_if_unreached:
        value_R = np.where(tokens_R == 0, np.inf, value_R)
    return value_R


def _blocks(model: PreTrainedModel) -> list[RaggedMoEBlock]:
    return [module for module in model.modules() if isinstance(module, RaggedMoEBlock)]


def _empty_layer(block: RaggedMoEBlock, scores: list[DataScore]) -> _Layer:
    experts = tuple(
        ExpertWeights(block.layer, number, *(matrix.weight.detach() for matrix in expert))
        for number, expert in enumerate(block.routed)
    )
    table = ExpertTable(tuple(len(weights.up_WD) for weights in experts))
    sums = {score.name: np.zeros(table.rows) for score in scores}
    return _Layer(block.layer, experts, table, sums, np.zeros(len(experts), dtype=np.int64))


def _check_sequences(sequences: list[NDArray[np.int32]], model: PreTrainedModel) -> None:
    vocab, longest = model.config.vocab_size, model.config.max_position_embeddings
    for number, sequence in enumerate(sequences):
        if not 2 <= len(sequence) <= longest:
            raise CalibrationError(
                f"calibration sequence {number} has {len(sequence)} tokens, expected 2 to "
                f"{longest}; change calibrate.sequence_length or the sources"
            )
        if not 0 <= sequence.min() <= sequence.max() < vocab:
            raise CalibrationError(
                f"calibration sequence {number} holds a token outside 0 to {vocab - 1}; use the "
                "tokenizer of the model"
            )


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic algorithms within, the caller's choice after."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
