"""Twin of a tied model: the same values, with its lm_head stored as a matrix of its own."""

from __future__ import annotations

from pathlib import Path

from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.families import spec_of


def untied_twin(tied: Path, out: Path) -> Path:
    """Copy of a checkpoint in which the embedding's table is stored a second time."""
    checkpoint = Checkpoint(tied)
    spec = spec_of(checkpoint.config)
    assert spec.tied_embeddings
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    tensors[spec.name("lm_head")] = tensors[spec.name("embedding")]
    config = checkpoint.config | dict.fromkeys(spec.family.tie_keys, False)
    out.mkdir()
    with CheckpointWriter(out, config, num_shards=1) as writer:
        writer.write_shard(tensors)
    copy_tokenizer_files(tied, out)
    return out
