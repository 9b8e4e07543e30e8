"""Sessions of an exported model whose graph was changed in memory, and their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.op.library import register


def open_changed(model: ir.Model, directory: Path, *, native: bool) -> Any:
    """Opens a changed graph on the CPU.

    Args:
        model: Graph, whose weights stay in the folder of the export.
        directory: Folder of the exported model; nothing is written there.
        native: True to run the operator in the native library.
    """
    import onnxruntime  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(directory)
    )
    if native:
        register(options)
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def first_inputs(model: ir.Model, sequence: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Inputs of a run of one sequence without past tokens, by name."""
    past = [v for v in model.graph.inputs if str(v.name).startswith("past_key_values.")]
    return {
        "input_ids": np.array([sequence], dtype=np.int64),
        "attention_mask": np.ones((1, len(sequence)), dtype=np.int64),
        **{str(value.name): _no_tokens(value) for value in past},
    }


def _no_tokens(value: ir.Value) -> NDArray[Any]:
    """State of one sequence without tokens: empty keys and values, or zeros of fixed size."""
    assert value.shape is not None
    assert value.dtype is not None
    axes = value.shape[1:]
    sizes = [axis if isinstance(axis, int) else 0 for axis in axes]
    return np.zeros((1, *sizes), dtype=value.dtype.numpy())
