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

from moe_export.op.library import register
from moe_export.variants import MODEL_FILE


def with_layer_outputs(directory: Path, sequence: Sequence[int]) -> list[NDArray[Any]]:
    """Runs one sequence through an exported model on the CPU and returns every layer's output.

    Args:
        directory: Folder of the exported model; nothing is written there.
        sequence: Token ids, without padding.

    Returns:
        Residual stream after each layer, one array [T, D] per layer in the model's dtype.
    """
    import onnxruntime  # noqa: PLC0415 - an extra

    model = ir.load(directory / MODEL_FILE)
    past = [v for v in model.graph.inputs if str(v.name).startswith("past_key_values.")]
    num_layers = len(past) // 2
    # The norm after a layer adds the layer's output to the residual; its fourth output is the sum.
    norms = [*(f"layers.{layer}.input_norm" for layer in range(1, num_layers)), "final_norm"]
    sums = [model.graph.node(norm).outputs[3] for norm in norms]
    for value in sums:
        value.type = past[0].type
        model.graph.outputs.append(value)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(directory)
    )
    if not model.functions:
        register(options)  # a packed model runs only in the native library
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": np.array([sequence], dtype=np.int64),
        "attention_mask": np.ones((1, len(sequence)), dtype=np.int64),
    }
    for value in past:
        assert value.name is not None
        assert value.shape is not None
        assert value.dtype is not None
        heads, size = value.shape[1], value.shape[3]
        assert isinstance(heads, int)
        assert isinstance(size, int)
        feeds[value.name] = np.zeros((1, heads, 0, size), dtype=value.dtype.numpy())
    return [states[0] for states in session.run([value.name for value in sums], feeds)]
