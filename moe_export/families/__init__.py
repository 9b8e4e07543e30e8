"""Known model families, and the function that opens a checkpoint of one of them."""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families import known
from moe_export.families.base import PRUNED_PREFIX, Family, ModelSpec
from moe_export.families.config import read_spec
from moe_export.families.layouts import divide_fused
from moe_export.families.stored import check_tensors

__all__ = ["FAMILIES", "check_tensors", "open_checkpoint", "spec_of"]

FAMILIES: dict[str, Family] = {
    module.name: import_module(f"{known.__name__}.{module.name}").FAMILY
    for module in iter_modules(known.__path__)
}
"""Families by model_type, one for each module in `known`."""

REFUSED = {
    "gpt_oss": "its experts have biases and a gate that is cut off, its attention has sinks and a "
    "window in every other layer, and its published weights are in MXFP4",
}
"""Reasons why families are not supported, by model_type."""


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """Sizes of the model that a config describes, pruned and quantized or not.

    Raises:
        CheckpointError: The model_type is unknown, or the config does not fit its family.
    """
    model_type = str(config.get("model_type"))
    if model_type in REFUSED:
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported: {REFUSED[model_type]}; "
            f"supported are {', '.join(FAMILIES)}"
        )
    family = FAMILIES.get(model_type.removeprefix(PRUNED_PREFIX))
    if family is None:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1, cutoff=0.0)
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported; known are "
            f"{', '.join(FAMILIES)}, the nearest is {near[0]!r}"
        )
    return read_spec(family, config)


def open_checkpoint(directory: Path) -> tuple[Checkpoint, ModelSpec]:
    """Opens a checkpoint of a known family and checks that it has exactly the expected tensors.

    Parts of fused tensors get the family's names.

    Raises:
        CheckpointError: A file or tensor is missing, damaged, unknown or superfluous.
    """
    checkpoint = Checkpoint(directory)
    spec = spec_of(checkpoint.config)
    divide_fused(checkpoint, spec)
    check_tensors(checkpoint, spec)
    return checkpoint, spec
