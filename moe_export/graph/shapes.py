"""Types and shapes of the values between nodes, which tools such as quantizers and viewers read."""

from __future__ import annotations

from typing import Any

import onnx.shape_inference


def with_shapes(model: Any) -> Any:
    """Adds types and shapes of node outputs to a model, as far as they can be inferred.

    The rules are those of the standard operators. The builder describes the outputs of ONNX
    Runtime's operators and of our own, which have no such rules.

    Args:
        model: Model as an `onnx.ModelProto`, with its weights outside.

    Returns:
        A copy with entries in `graph.value_info`.
    """
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
