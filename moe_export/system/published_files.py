"""Sentences about published files that are not a checkpoint of safetensors itself."""

from __future__ import annotations

from pathlib import Path

from moe_export.errors import CheckpointError

LFS_START = "version https://git-lfs"
"""Beginning of a pointer of Git LFS, a text of three lines."""

ADVICE = (
    ("adapter_model.*", "is an adapter; merge it into its model with peft's merge_and_unload()"),
    ("model-*-of-*.safetensors", "is a part of the weights; copy their index too"),
    ("consolidated*", "has the names of another format; take the files that transformers reads"),
    ("*.safetensors", "has another name; load it with transformers and save it again"),
    ("*.bin", "is a pickle, which could run code; convert it with transformers' save_pretrained()"),
    ("*.pt*", "is a pickle, which could run code; convert it with transformers' save_pretrained()"),
    ("*.gguf", "is of llama.cpp; take the checkpoint that it was made from"),
    ("*.onnx", "is an exported model; take the checkpoint that it was made from"),
)
"""Files, by pattern, and the way from each to a safetensors checkpoint."""


def other_weights(directory: Path) -> str:
    """Advice by the files that a directory has in the place of safetensors."""
    for pattern, advice in ADVICE:
        for path in sorted(directory.glob(pattern)):
            return f"{path.name} {advice}"
    return "give the directory of a safetensors checkpoint"


def require_content(path: Path, head: str) -> None:
    """Stops at a file that `git clone` left as a pointer to its content.

    Args:
        path: Path of the file, for the message.
        head: Its first characters.

    Raises:
        CheckpointError: It is a pointer.
    """
    if head.startswith(LFS_START):
        raise CheckpointError(
            f"{path} is a pointer of Git LFS, not the file itself; fetch it with `git lfs pull`"
        )
