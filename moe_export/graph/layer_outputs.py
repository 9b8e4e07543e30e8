"""Residual stream of an exported model after each layer, to locate a numeric error.

Legend: T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.graph.changed import first_inputs, open_changed
from moe_export.variants import MODEL_FILE


def with_layer_outputs(directory: Path, sequence: Sequence[int]) -> list[NDArray[Any]]:
    """Runs one sequence through an exported model on the CPU and returns every layer's output.

    Args:
        directory: Folder of the exported model; nothing is written there.
        sequence: Token ids, without padding.

    Returns:
        Residual stream after each layer, one array [T, D] per layer in the model's dtype.
    """
    model = ir.load(directory / MODEL_FILE)
    norms = _norms_behind_layers(_num_layers(model))
    return _residual_streams(model, directory, sequence, norms)


def first_overflow(directory: Path, sequence: Sequence[int]) -> tuple[int, str]:
    """Finds the first block whose output makes the residual stream infinite or NaN.

    Args:
        directory: Folder of the exported model; nothing is written there.
        sequence: Token ids, without padding.

    Returns:
        Number of the layer and name of the block's output in the graph; the number of layers and
        `logits` if the residual stream is finite behind every layer.
    """
    model = ir.load(directory / MODEL_FILE)
    num_layers = _num_layers(model)
    behind_attention = [f"layers.{layer}.expert_norm" for layer in range(num_layers)]
    pairs = zip(behind_attention, _norms_behind_layers(num_layers), strict=True)
    norms = [norm for pair in pairs for norm in pair]
    outputs = [model.graph.node(norm).inputs[0] for norm in norms]
    blocks = [str(value.name) for value in outputs if value is not None]
    streams = _residual_streams(model, directory, sequence, norms)
    for place, (block, stream) in enumerate(zip(blocks, streams, strict=True)):
        if not np.isfinite(stream).all():
            return place // 2, block
    return num_layers, "logits"


def _num_layers(model: ir.Model) -> int:
    """Number of layers, each of which has one norm in front of its experts."""
    return sum(str(node.name).endswith(".expert_norm") for node in model.graph)


def _norms_behind_layers(num_layers: int) -> list[str]:
    return [*(f"layers.{layer}.input_norm" for layer in range(1, num_layers)), "final_norm"]


def _residual_streams(
    model: ir.Model, directory: Path, sequence: Sequence[int], norms: Sequence[str]
) -> list[NDArray[Any]]:
    """Residual stream [T, D] that enters each of the norms."""
    # A norm adds the output of the block before it to the residual; its fourth output is the sum.
    sums = [model.graph.node(norm).outputs[3] for norm in norms]
    for value in sums:
        value.type = model.graph.outputs[0].type  # that of the logits
        model.graph.outputs.append(value)
    # A packed model runs only in the native library.
    session = open_changed(model, directory, native=not model.functions)
    feeds = first_inputs(model, sequence)
    return [states[0] for states in session.run([value.name for value in sums], feeds)]
