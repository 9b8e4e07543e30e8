"""The model families that are known, and the ledger that holds a checkpoint against its family."""

from __future__ import annotations

import difflib
from typing import Any

from moe_export.errors import CheckpointError
from moe_export.families.base import PRUNED_PREFIX, Family, ModelSpec, read_spec
from moe_export.families.qwen2_moe import QWEN2_MOE
from moe_export.families.stored import check_ledger

__all__ = ["FAMILIES", "check_ledger", "spec_of"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2_MOE,)}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The sizes of the model that a config describes, pruned and quantized or not.

    Raises:
        CheckpointError: the model_type is unknown, or the config does not fit its family.
    """
    model_type = str(config.get("model_type"))
    family = FAMILIES.get(model_type.removeprefix(PRUNED_PREFIX))
    if family is None:
        near = difflib.get_close_matches(model_type, FAMILIES, n=1, cutoff=0.0)
        raise CheckpointError(
            f"config.json: model_type {model_type!r} is not supported; known are "
            f"{', '.join(FAMILIES)}, the nearest is {near[0]!r}"
        )
    return read_spec(family, config)
