"""Trained weights in the dtypes of the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec


def rounded(
    name: str, parameter: nn.Parameter, checkpoint: Checkpoint, spec: ModelSpec
) -> NDArray[Any]:
    """Value of a trained weight as it is stored; the parameter gets it too.

    Vectors and biases stay float32.

    Args:
        name: Name of the weight.
        parameter: The weight in float32.
        checkpoint: Checkpoint before.
        spec: Sizes of the model that is tuned.

    Raises:
        CheckpointError: The weight is too large for its dtype.
    """
    own = spec.tensors[name].stored
    dtype = checkpoint.tensors[name].dtype if own is None else np.dtype(own)
    value: NDArray[Any] = parameter.detach().numpy().astype(dtype)
    wide = value.astype(np.float32)
    if not np.isfinite(wide).all():
        raise CheckpointError(
            f"tune: {name} has values that {dtype} cannot hold; lower tune.learning_rate"
        )
    parameter.data.copy_(torch.from_numpy(wide))
    return value
