"""Computing scores of a model from a calibration set.

Legend: R rows (sum of widths).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.errors import CalibrationError, CheckpointError
from moe_export.families.axis import Axis
from moe_export.passes.batches import batches_of
from moe_export.passes.states import States
from moe_export.scores.base import DataScore, DerivedScore, Score, WeightScore, measured
from moe_export.scoring.collector import Collector
from moe_export.scoring.layer_sums import LayerSums
from moe_export.scoring.source_weights import SourceWeights
from moe_export.system.progress import Progress, silent
from moe_export.system.workers import ALONE, Workers
from moe_export.torch_model.deterministic import deterministic
from moe_export.torch_model.layered import LayeredModel

Layers = list[NDArray[np.float64]]
"""Values of a score, [R] per layer."""


def collect_importance(
    model: LayeredModel,
    axis: Axis,
    calibration: Calibration,
    scores: Sequence[Score],
    batch_tokens: int,
    folder: Path,
    progress: Progress = silent,
    workers: Workers = ALONE,
) -> Importance | None:
    """Scores every dimension of every expert on the axis.

    A shared expert on the axis is scored as a routed one that every token is sent to, with the
    weight of its own gate, or 1.

    Within a source every token weighs alike, and a source weighs as the calibration set says; see
    `SourceWeights`. Only scores that are a mean over sequences leave the weights out.

    Sums are in float64 and over the batches in their order, so that the same call gives the same
    bytes, whatever the number of workers.

    Args:
        model: Model in memory, or streamed.
        axis: Experts of the model that are scored.
        calibration: Token sequences; no loss is taken on the first token of each.
        scores: Scores to compute, at least one.
        batch_tokens: Most positions of a batch, padding included; a longer sequence is a batch
            alone.
        folder: Folder of states between layers. An interrupted call with the same arguments
            resumes from it; it may be removed afterwards.
        progress: Function that is called for every batch in every layer.
        workers: Processes that share the batches; all of them make this call.

    Returns:
        The scores for the first of the workers; None for the others.

    Raises:
        CalibrationError: there is no sequence, or one of them does not suit the model.
        ResourceError: the disk is too small for the states.
        CheckpointError: a score is not finite.
    """
    sequences = calibration.sequences()
    _check_sequences(sequences, model)
    batches = batches_of(sequences, batch_tokens)
    own = {number: batches[number] for number in workers.share(len(batches))}
    states = States(folder / f"worker-{workers.rank + 1}-of-{workers.size}")
    sources = SourceWeights.of(calibration)
    needed = measured(scores)
    collector = Collector(
        model, axis, needed, sources, len(batches), own, states, folder, workers, progress
    )
    collector.check_space()
    with deterministic():
        layers = collector.run()
    if workers.rank > 0:
        return None
    data_scores = [score for score in needed if isinstance(score, DataScore)]
    names = [score.name for score in data_scores]
    totals = {
        "sequences": len(sequences),
        "tokens": len(calibration.tokens_N),
        "targets": len(calibration.tokens_N) - len(sequences),
    }
    values = {
        score.name: [
            _finished(score, number, layer, totals, names) for number, layer in enumerate(layers)
        ]
        for score in needed
    }
    asked = {score.name for score in scores}
    return Importance(
        scores={score.name: _value(score, values) for score in scores},
        tokens_per_expert=[axis.routed(layer.tokens_E) for layer in layers],
        source_shares={
            score.name: _source_shares(score, number, layers)
            for number, score in enumerate(data_scores)
            if score.name in asked
        },
    )


def _value(score: Score, values: dict[str, Layers]) -> Layers:
    """Values of a score, given those of all that were measured."""
    if isinstance(score, DerivedScore):
        return score.combine(*(values[part.name] for part in score.parts))
    return values[score.name]


def _finished(
    score: Score, number: int, layer: LayerSums, totals: dict[str, int], data_scores: Sequence[str]
) -> NDArray[np.float64]:
    if isinstance(score, WeightScore):
        value_R = layer.weights.get(score.name, np.zeros(0))
    else:
        assert isinstance(score, DataScore)
        tokens_R = np.repeat(layer.tokens_E, layer.widths_E)
        value_R = layer.sums_CR[data_scores.index(score.name)]
        if score.mean_over == "routed_tokens":
            value_R = value_R / np.repeat(_routed(layer), layer.widths_E)
        elif score.mean_over is not None:
            value_R = value_R / totals[score.mean_over]
    bad = int(np.count_nonzero(~np.isfinite(value_R)))
    if bad:
        raise CheckpointError(
            f"layer {number}: score {score.name} has {bad} values that are not finite; the "
            "model overflows on the calibration set, set importance.dtype: float32"
        )
    if isinstance(score, DataScore) and not score.known_if_unreached:
        value_R = np.where(tokens_R == 0, np.inf, value_R)
    return value_R


def _routed(layer: LayerSums) -> NDArray[np.float64]:
    """Weights of the tokens routed to each expert; 1 for an expert without tokens."""
    return np.where(layer.tokens_E > 0, layer.weight_E, 1)


def _source_shares(
    score: DataScore, number: int, layers: Sequence[LayerSums]
) -> NDArray[np.float64]:
    """Share of each source in a score summed over all dimensions, float64 [K]; 0 if all is 0."""
    sums_KE = [layer.sources_KCE[:, number] for layer in layers]
    if score.mean_over == "routed_tokens":
        sums_KE = [each / _routed(layer) for each, layer in zip(sums_KE, layers, strict=True)]
    total_K: NDArray[np.float64] = sum(each.sum(axis=1) for each in sums_KE)
    return total_K / (total_K.sum() or 1)


def _check_sequences(sequences: list[NDArray[np.int32]], model: LayeredModel) -> None:
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
