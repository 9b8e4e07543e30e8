"""The model families that are known, and the ledger that holds a checkpoint against its family."""

from __future__ import annotations

import difflib
from typing import Any

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families.base import PRUNED_PREFIX, Family, ModelSpec, read_spec
from moe_export.families.qwen2_moe import QWEN2_MOE

FAMILIES: dict[str, Family] = {family.model_type: family for family in (QWEN2_MOE,)}


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """The sizes of the model that a config describes, pruned or not.

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


def check_ledger(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Holds every tensor of a checkpoint against what its config says the model has.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape, or unknown to the family. Nothing
            that is not understood is ever dropped.
    """
    where = checkpoint.directory
    for name, expected in spec.tensors.items():
        found = checkpoint.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{where}: tensor {name} is missing, {spec.family.model_type} needs it; "
                "get a complete copy of the checkpoint"
            )
        if found.shape != expected.shape:
            raise CheckpointError(
                f"{where / found.shard}: tensor {name} has shape {list(found.shape)}, config.json "
                f"asks for {list(expected.shape)}"
            )
    unknown = sorted(checkpoint.tensors.keys() - spec.tensors.keys())
    if unknown:
        raise CheckpointError(
            f"{where}: tensor {unknown[0]} (and {len(unknown) - 1} more) is unknown to "
            f"{spec.family.model_type}; the run stops rather than drop weights"
        )
