"""Division of fused tensors, so that transformers 5 checkpoints read like published ones.

transformers 5 holds the experts of a layer in fused tensors, `gate_up_proj` [experts, 2 * width,
hidden] and `down_proj` [experts, hidden, width], and has renamed some modules. It saves them so
with `save_original_format=False`. Published checkpoints have one tensor per matrix of an expert.
"""

from __future__ import annotations

from moe_export.checkpoint import Checkpoint, Part
from moe_export.errors import CheckpointError
from moe_export.families.base import FusedRule, ModelSpec


def name_text(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Gives tensors of a language model within a larger model the names that they have alone."""
    prefix = spec.family.text_prefix
    if prefix is None:
        return
    for name in [name for name in checkpoint.tensors if name.startswith(prefix)]:
        checkpoint.rename(name, "model." + name.removeprefix(prefix))


def divide_fused(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Replaces each fused tensor by its parts, with the names of the family.

    No values are read; reading a part later reads only its bytes.

    Raises:
        CheckpointError: The shape of a fused tensor disagrees with the config.
    """
    for rule in spec.family.fused:
        for layer in range(spec.num_layers):
            if rule.template.format(layer=layer) in checkpoint.tensors and spec.has_experts(layer):
                _divide(checkpoint, spec, rule, layer)


def _divide(checkpoint: Checkpoint, spec: ModelSpec, rule: FusedRule, layer: int) -> None:
    stored = rule.template.format(layer=layer)
    fused = checkpoint.tensors[stored]
    expert_roles = {entry.role for entry in spec.family.tensors if "{expert}" in entry.template}
    experts = range(spec.num_experts) if rule.roles[0] in expert_roles else (None,)
    parts: dict[str, Part] = {}
    fused_shape: tuple[int, ...] = ()
    for expert in experts:
        row = 0
        for role in rule.roles:
            name = spec.name(role, layer, expert)
            rows, *columns = spec.tensors[name].shape
            parts[name] = Part(stored, expert, row, row + rows)
            row += rows
            fused_shape = (row, *columns) if expert is None else (spec.num_experts, row, *columns)
    if fused.shape != fused_shape:
        raise CheckpointError(
            f"{checkpoint.directory / fused.shard}: tensor {stored} has shape {list(fused.shape)}, "
            f"config.json asks for {list(fused_shape)}"
        )
    twice = sorted(parts.keys() & checkpoint.tensors.keys() - {stored})
    if twice:
        raise CheckpointError(
            f"{checkpoint.directory}: {twice[0]} is there by itself and within {stored}; keep one "
            "of the two"
        )
    checkpoint.divide(stored, parts)
