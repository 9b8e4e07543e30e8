"""The model families that are known, and opening a checkpoint as one of them."""

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
from moe_export.families.stored import check_ledger

__all__ = ["FAMILIES", "check_ledger", "open_checkpoint", "spec_of"]

FAMILIES: dict[str, Family] = {
    module.name: import_module(f"{known.__name__}.{module.name}").FAMILY
    for module in iter_modules(known.__path__)
}
"""Every family by its model_type: a new module in `known` is one more."""

REFUSED = {
    "gpt_oss": "its experts have biases and a gate that is cut off, its attention has sinks and a "
    "window in every other layer, and its published weights are in MXFP4",
}
"""Families that are known and not supported, and why."""


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The sizes of the model that a config describes, pruned and quantized or not.

    Raises:
        CheckpointError: the model_type is unknown, or the config does not fit its family.
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
    """A checkpoint of a known family, in which every tensor bears the family's name for it and is
    accounted for.

    Raises:
        CheckpointError: whatever is missing, damaged, unknown or left over.
    """
    checkpoint = Checkpoint(directory)
    spec = spec_of(checkpoint.config)
    divide_fused(checkpoint, spec)
    check_ledger(checkpoint, spec)
    return checkpoint, spec
