"""Tensors in checkpoints that hold nothing of their own, and are dropped by rule.

Old checkpoints store the rotary frequencies, which the config determines. Some savers store the
lm_head of a model whose logits come from the embedding. Layers after the last one that predict
tokens further ahead (multi-token prediction) are not used in decoding.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec

ROTARY = re.compile(r"(.+\.)?rotary_emb\.(original_)?(inv_freq|cos_cached|sin_cached)")

ROTARY_REASON = "rotary frequencies follow from config.json"
AHEAD_REASON = (
    "predicts tokens further ahead (num_nextn_predict_layers, mtp), which decoding does not use"
)
VISION_REASON = "belongs to the part of the model that sees; the language model alone is exported"
TIED_REASON = "equals the embedding, which the logits come from"

CHUNK_VALUES = 1 << 22
"""Values of two tensors that are compared at once."""


def drop_ignored(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Drops the tensors that hold nothing of their own; `Checkpoint.dropped` has the reasons.

    Raises:
        CheckpointError: A stored lm_head differs from the embedding that it is tied to.
    """
    for name in [name for name in checkpoint.tensors if ROTARY.fullmatch(name)]:
        checkpoint.drop(name, ROTARY_REASON)
    vision = spec.family.vision_prefix
    for name in [name for name in checkpoint.tensors if vision and name.startswith(vision)]:
        checkpoint.drop(name, VISION_REASON)
    for name in _ahead(checkpoint, spec):
        checkpoint.drop(name, AHEAD_REASON)
    head, embedding = spec.name("lm_head"), spec.name("embedding")
    if not spec.tied_embeddings or head not in checkpoint.tensors:
        return
    if embedding not in checkpoint.tensors:
        return  # the check of all tensors names it
    if not _are_equal(_place(checkpoint, embedding), _place(checkpoint, head)):
        raise CheckpointError(
            f"{checkpoint.directory}: config.json ties the logits to {embedding} "
            f"(tie_word_embeddings), but {head} has other values; set tie_word_embeddings to false "
            "if the model was trained with both, or remove the wrong one"
        )
    checkpoint.drop(head, TIED_REASON)


def _ahead(checkpoint: Checkpoint, spec: ModelSpec) -> list[str]:
    """Tensors that predict tokens further ahead.

    They have a prefix of their own, or are in the layers after the last one that the config names.
    """
    prefix = spec.family.ahead_prefix
    if prefix is not None:
        return [name for name in checkpoint.tensors if name.startswith(prefix)]
    layers = checkpoint.config.get("num_nextn_predict_layers")
    if not spec.family.predicts_ahead or type(layers) is not int:
        return []
    layer = re.compile(r"model\.layers\.(\d+)\.")
    after = range(spec.num_layers, spec.num_layers + layers)
    return [
        name
        for name in checkpoint.tensors
        if (match := layer.match(name)) and int(match[1]) in after
    ]


class _Place(NamedTuple):
    """Tensor in a shard, and the shard's size and time of change."""

    name: str
    shard: Path
    size_bytes: int
    changed_ns: int
    shape: tuple[int, ...]


def _place(checkpoint: Checkpoint, name: str) -> _Place:
    info = checkpoint.tensors[name]
    shard = checkpoint.directory / info.shard
    facts = shard.stat()
    return _Place(name, shard, facts.st_size, facts.st_mtime_ns, info.shape)


@lru_cache(maxsize=8)
def _are_equal(first: _Place, second: _Place) -> bool:
    """Compares two tensors value by value, a few rows at a time.

    A run opens its checkpoint several times; the result is kept until a shard changes.
    """
    if first.shape != second.shape:
        return False
    rows = first.shape[0]
    step = max(1, CHUNK_VALUES // max(1, first.shape[-1]))
    try:
        with safe_open(first.shard, "np") as one, safe_open(second.shard, "np") as other:
            slices = one.get_slice(first.name), other.get_slice(second.name)
            return all(
                np.array_equal(*(each[start : min(start + step, rows)] for each in slices))
                for start in range(0, rows, step)
            )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{first.shard}: tensor {first.name} cannot be read ({error}); copy the shard again"
        ) from error
