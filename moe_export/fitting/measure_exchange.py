"""Measuring what rounding and dropping cost; see `moe_export.artifacts.exchange`.

All changed models go through the layers together: one in which everything is rounded, one for each
layer in which that layer alone is, and some with dimensions of least importance at zero. Where a
model has not been changed yet it is the unchanged one.

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
"""What is rounded to. Finer formats cost by their smaller error."""

SHARES = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""How much is dropped, over what rounding everything is predicted to cost."""

ALL, ALONE = "all", "alone-"
"""Kinds of state: of the model in which everything is rounded; before the layer that alone is."""


def measure_exchange(
    directory: Path,
    sequences: Sequence[NDArray[np.int32]],
    importance: Sequence[NDArray[np.float64]],
    rounding: Sequence[NDArray[np.float64]],
    folder: Path,
    progress: Progress = silent,
) -> Exchange:
    """Measures a model.

    Args:
        directory: its checkpoint, not pruned.
        sequences: calibration tokens.
        importance: per layer [R], what dropping each row costs; +inf is never dropped. The shared
            expert's rows may be the last of them.
        rounding: per layer [R], what rounding it costs with a relative squared error of 1.
        folder: for states between layers; it may be removed after.
        progress: told of every layer.

    Raises:
        CheckpointError: whatever is wrong with the checkpoint.
        ResourceError: the disk is full.
    """
    model = StreamedModel(directory, torch.float32)
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
        found = _divergences(passes, kinds)
    return Exchange(
        rounded=tuple(
            Measured(predicted[layer], found.get(_alone(layer), 0.0)) for layer in range(num_layers)
        ),
        all_rounded=Measured(sum(predicted), found[ALL]),
        dropped=tuple(
            Measured(lost, found[_dropped(level)]) for level, (lost, _) in enumerate(drops)
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
    """The rows of least importance that together have no more than a limit, and how much."""
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
    """Takes all models through a layer.

    Args:
        passes: holds the states.
        layer: which.
        kinds: of the models that are changed already.
        dropped: at each level the rows, those of the one before among them.

    Returns:
        The kinds that are changed now.
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
        # Loaded anew, which costs less memory than to keep what was changed.
        with passes.model.layer(layer):
            _round(block)
            onward(ALL)
            onward(_alone(layer))
    for kind in (INPUT, *kinds):
        passes.states.drop(kind, layer)
    return list(dict.fromkeys([*kinds, *changed]))


def _zero(block: RaggedMoEBlock, dropped_R: NDArray[np.bool_]) -> None:
    """Masks rows by their columns of `down`, the shared expert's too if they are among them."""
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
    """KL of every changed model from the unchanged one, mean over the tokens."""
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
