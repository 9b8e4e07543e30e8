"""Measurement of the cost of rounding and of dropping; see `moe_export.artifacts.exchange`.

All changed models go through the layers together: one with all experts rounded, one per layer with
only that layer rounded, and several with their least important dimensions set to zero. Before its
first changed layer, a model shares the states of the unchanged one.

Legend: R rows of a layer, N rows of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.exchange import Exchange, Measured
from moe_export.op import rounding as native
from moe_export.passes.batches import batches_of
from moe_export.passes.carried import BATCH_TOKENS
from moe_export.passes.layers import INPUT, NormedBatch, Passes
from moe_export.passes.loss import divergence_nats
from moe_export.passes.states import States
from moe_export.planning.allocation import format_errors
from moe_export.quantization import FormatWord
from moe_export.system.progress import Progress, silent
from moe_export.torch_model.block import Matrix, RaggedMoEBlock
from moe_export.torch_model.deterministic import deterministic
from moe_export.torch_model.layered import StreamedModel

FORMAT: FormatWord = "int4"
GROUP_SIZE = 32
"""Group size of the rounding, with `FORMAT`. Costs of finer formats follow from their errors."""

SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""Predicted cost of each dropping level, as a share of that of rounding everything."""

ALL, ALONE = "all", "alone-"
"""Kinds of state: of the model with all experts rounded; of the one with a single layer rounded
(a prefix of the layer's number)."""


def measure_exchange(
    directory: Path,
    sequences: Sequence[NDArray[np.int32]],
    importance: Sequence[NDArray[np.float64]],
    rounding: Sequence[NDArray[np.float64]],
    folder: Path,
    progress: Progress = silent,
    top_k: int | None = None,
) -> Exchange:
    """Measures the divergence that rounding and dropping cause in a model.

    Args:
        directory: Unpruned checkpoint.
        sequences: Token ids of each calibration sequence, int32.
        importance: Predicted cost of dropping each row, [R] per layer; +inf is never dropped. The
            shared expert's rows may be the last of them.
        rounding: Predicted cost of rounding each row with a relative squared error of 1, [R] per
            layer.
        folder: Folder for states between layers, which may be removed afterwards.
        progress: Function that reports every layer.
        top_k: Experts per token of the model; None for those of the checkpoint.

    Raises:
        CheckpointError: A file or tensor is missing, damaged, unknown or superfluous.
        ResourceError: The disk is full.
    """
    model = StreamedModel(directory, torch.float32, top_k)
    num_layers = model.spec.num_layers
    predicted = [
        float(np.nan_to_num(rounding_R, posinf=0.0).sum())
        * format_errors(model.checkpoint, model.spec, layer, (FORMAT,), GROUP_SIZE)[FORMAT]
        for layer, rounding_R in enumerate(rounding)
    ]
    drops = [_least(importance, share * sum(predicted)) for share in SHARES]
    batches = dict(enumerate(batches_of(list(sequences), BATCH_TOKENS)))
    passes = Passes(model, batches, States(folder))
    with deterministic():
        passes.begin()
        kinds: list[str] = []
        for layer in range(num_layers):
            progress(layer, num_layers + 1, f"layer {layer}, rounded and dropped")
            kinds = _through(passes, layer, kinds, [dropped[layer] for _, dropped in drops])
        progress(num_layers, num_layers + 1, "head and divergence")
        kl_nats = _divergences(passes, kinds)
    return Exchange(
        rounded=tuple(
            Measured(predicted=predicted[layer], kl_nats=kl_nats.get(_alone(layer), 0.0))
            for layer in range(num_layers)
        ),
        all_rounded=Measured(predicted=sum(predicted), kl_nats=kl_nats[ALL]),
        dropped=tuple(
            Measured(predicted=lost, kl_nats=kl_nats[_dropped(level)])
            for level, (lost, _) in enumerate(drops)
        ),
        tokens=sum(int(batch.target_T.sum()) for batch in batches.values()),
        format=FORMAT,
        group_size=GROUP_SIZE,
    )


def _alone(layer: int) -> str:
    return f"{ALONE}{layer}"


def _dropped(level: int) -> str:
    return f"dropped-{level}"


def _least(
    importance: Sequence[NDArray[np.float64]], limit: float
) -> tuple[float, list[NDArray[np.bool_]]]:
    """Least important rows whose costs sum to at most a limit.

    Returns:
        Sum of their costs, and a mask [R] of the dropped rows for each layer.
    """
    value_N = np.concatenate(importance)
    order_N = np.argsort(value_N, kind="stable")
    sums_N = np.cumsum(value_N[order_N])
    number = int(np.searchsorted(sums_N, limit, side="right"))
    dropped_N = np.zeros(len(value_N), bool)
    dropped_N[order_N[:number]] = True
    ends = np.cumsum([len(layer_R) for layer_R in importance])[:-1]
    return float(sums_N[number - 1]) if number else 0.0, np.split(dropped_N, ends)


def _through(
    passes: Passes, layer: int, kinds: list[str], dropped: Sequence[NDArray[np.bool_]]
) -> list[str]:
    """Runs all models through a layer.

    Args:
        passes: Passes that hold the states.
        layer: Number of the layer.
        kinds: Kinds of the models that differ from the unchanged one before this layer.
        dropped: Mask [R] of the dropped rows at each level; a level includes the one before it.

    Returns:
        Kinds of the models that differ after this layer.
    """
    numbers = list(passes.batches)

    def onward(kind: str) -> None:
        source = kind if kind in kinds else INPUT
        passes.forward(layer, numbers, kinds=(source, kind))

    with passes.model.layer(layer):
        block = passes.model.block(layer)
        onward(INPUT)
        for kind in kinds:
            if block is None or kind.startswith(ALONE):
                onward(kind)
        if block is not None:
            for level, dropped_R in enumerate(dropped):
                _zero(block, dropped_R)
                onward(_dropped(level))
    changed = []
    if block is not None:
        changed = [ALL, _alone(layer), *(_dropped(level) for level in range(len(dropped)))]
        # Loading the layer again takes less memory than keeping a copy of its weights.
        with passes.model.layer(layer):
            _round(block)
            onward(ALL)
            onward(_alone(layer))
    for kind in (INPUT, *kinds):
        passes.states.drop(kind, layer)
    return list(dict.fromkeys([*kinds, *changed]))


def _zero(block: RaggedMoEBlock, dropped_R: NDArray[np.bool_]) -> None:
    """Masks dropped rows by zeroing their columns of `down`, with the shared expert's if given."""
    ends = np.cumsum([expert.down.weight.shape[1] for expert in block.all_experts])
    parts = np.split(dropped_R, ends[:-1])
    for expert, dropped_W in zip(block.all_experts, parts, strict=True):
        if len(dropped_W):
            expert.down.weight[:, torch.from_numpy(dropped_W)] = 0


def _round(block: RaggedMoEBlock) -> None:
    """Quantizes all experts, the shared one too, and dequantizes them."""
    for expert in block.all_experts:
        for matrix in expert:
            _round_matrix(matrix)


def _round_matrix(matrix: Matrix) -> None:
    rounded_KN = native.quantize(FORMAT, matrix.weight.numpy(), GROUP_SIZE).dequantized()
    matrix.weight.copy_(torch.from_numpy(rounded_KN.T))


def _divergences(passes: Passes, kinds: Sequence[str]) -> dict[str, float]:
    """KL of every changed model from the unchanged one in nats, mean over tokens, by kind."""
    last = len(passes.model.layers)
    totals = dict.fromkeys(kinds, 0.0)
    tokens = 0
    with passes.model.head() as (norm, head):
        for number, batch in passes.batches.items():
            unchanged, *changed = (
                NormedBatch(norm, passes.state(kind, last, number), batch.target_T).hidden_TD
                for kind in (INPUT, *kinds)
            )
            tokens += len(unchanged)
            for kind, hidden_TD in zip(kinds, changed, strict=True):
                totals[kind] += divergence_nats(hidden_TD, unchanged, head, 1.0)[0]
    return {kind: total / tokens for kind, total in totals.items()}
