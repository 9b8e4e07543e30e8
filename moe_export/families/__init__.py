"""Known model families, and the function that opens a checkpoint of one of them."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from moe_export.checkpoint import Checkpoint, read_config
from moe_export.families import known
from moe_export.families.base import PRUNED_PREFIX, Family, ModelSpec
from moe_export.families.config import read_spec, with_top_k
from moe_export.families.extensions import require_own_type
from moe_export.families.foreign import require_floats, unsupported
from moe_export.families.ignored import drop_ignored
from moe_export.families.layouts import divide_fused, name_text
from moe_export.families.stored import check_tensors

__all__ = ["FAMILIES", "check_tensors", "open_checkpoint", "spec_of"]

FAMILIES: dict[str, Family] = {
    module.name: import_module(f"{known.__name__}.{module.name}").FAMILY
    for module in iter_modules(known.__path__)
}
"""Families by model_type, one for each module in `known`."""


def spec_of(config: dict[str, Any]) -> ModelSpec:
    """Sizes of the model that a config describes, pruned and quantized or not.

    Raises:
        CheckpointError: The model_type is unknown, or the config does not fit its family.
    """
    model_type = config.get("model_type")
    name = model_type.removeprefix(PRUNED_PREFIX) if isinstance(model_type, str) else ""
    if name not in FAMILIES:
        raise unsupported(config, FAMILIES)
    return read_spec(FAMILIES[name], config)


def open_checkpoint(directory: Path, top_k: int | None = None) -> tuple[Checkpoint, ModelSpec]:
    """Opens a checkpoint of a known family and checks that it has exactly the expected tensors.

    Parts of fused tensors get the family's names. Tensors that every loader ignores are dropped and
    listed in `Checkpoint.dropped`.

    Args:
        directory: Folder of the checkpoint.
        top_k: Experts per token, in place of the config's; None to keep those.

    Raises:
        RecipeError: `top_k` is more than the model's.
        CheckpointError: A file or tensor is missing, damaged, unknown or superfluous.
    """
    config = read_config(directory)
    spec = spec_of(config)  # the model's type is refused before its weights are read
    require_floats(config, directory)
    require_own_type(config)
    checkpoint = Checkpoint(directory)
    if top_k is not None:
        checkpoint.config = with_top_k(spec, checkpoint.config, top_k)
        spec = spec_of(checkpoint.config)
    name_text(checkpoint, spec)
    drop_ignored(checkpoint, spec)
    divide_fused(checkpoint, spec)
    check_tensors(checkpoint, spec)
    return checkpoint, spec
