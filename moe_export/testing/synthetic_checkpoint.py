"""A checkpoint of real shapes and random weights, to measure memory and time.

    python -m moe_export.testing.synthetic_checkpoint --family qwen2_moe --size qwen1.5-moe-a2.7b \
        --layers 6 --out DIR

Config, tensor names, shapes, storage type and shard sizes are those of the released model. The
values are random, and the tokenizer has as many tokens with invented merges, so the model's text
means nothing.

Values are normal: two random bytes choose one of 65,536 quantiles in bfloat16, so that a value
costs one look-up. Each row of a matrix has its own power of two as a factor, and so has each
expert, so that dimensions and experts differ in size as trained ones do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moe_export.checkpoint import CheckpointWriter, write_json
from moe_export.errors import MoeExportError, RecipeError, ResourceError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec, TensorSpec
from moe_export.system.prefetch import prefetched
from moe_export.testing.published import (
    GLM_4_7_FLASH,
    LFM2_8B_A1B,
    OLMOE_1B_7B,
    QWEN1_5_MOE,
    QWEN3_5_35B_TEXT,
)

SHARD_BYTES = 4_000_000_000
"""Limit of a shard, that of the released model."""

AHEAD_BYTES = 256 << 20
"""Bytes of tensors that are made ahead of writing."""

DTYPE = np.dtype(ml_dtypes.bfloat16)
SEED = 20240328

SIZES: dict[tuple[str, str], dict[str, Any]] = {
    ("qwen2_moe", "qwen1.5-moe-a2.7b"): QWEN1_5_MOE,
    ("olmoe", "olmoe-1b-7b"): OLMOE_1B_7B,
    ("lfm2_moe", "lfm2-8b-a1b"): LFM2_8B_A1B,
    ("glm4_moe_lite", "glm-4.7-flash"): GLM_4_7_FLASH,
    ("qwen3_5_moe_text", "qwen3.5-35b-a3b"): QWEN3_5_35B_TEXT,
}
"""Family and size to the config, with the keys that define a model."""

RESIDUAL_ROLES = frozenset({"o", "conv_out", "delta_out", "down", "shared_down", "dense_down"})
"""Roles of the matrices whose products are added to the residual stream."""

BYTES = 256
"""Tokens that every byte-level tokenizer has."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def main(arguments: list[str] | None = None) -> int:
    """Writes the checkpoint of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    families = sorted({family for family, _ in SIZES})
    parser.add_argument("--family", choices=families, required=True)
    parser.add_argument("--size", choices=sorted({size for _, size in SIZES}), required=True)
    parser.add_argument("--layers", type=int, help="number of layers (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder")
    given = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        config = config_of(given.family, given.size, given.layers)
        size_bytes = make(config, given.out)
    except MoeExportError as error:
        sys.stderr.write(f"synthetic_checkpoint: {error}\n")
        return error.exit_code
    seconds = time.monotonic() - started
    print(f"{given.out}: {size_bytes / 1e9:.2f} GB in {seconds:.0f} s")
    return 0


def config_of(
    family: str, size: str, layers: int | None = None, vocabulary: int | None = None
) -> dict[str, Any]:
    """Config of a released model, with fewer layers or tokens if asked for.

    Args:
        family: model_type of the model.
        size: Name of its size, see `SIZES`.
        layers: Number of its first layers; None for all.
        vocabulary: Number of tokens; None for all. The ids of special tokens are then those of the
            invented tokenizer.

    Raises:
        RecipeError: The family has no such size, or the size has fewer layers.
    """
    if (family, size) not in SIZES:
        raise RecipeError(f"{family} has no size {size!r}")
    config = dict(SIZES[family, size])
    most = config["num_hidden_layers"]
    if layers is not None and not 1 <= layers <= most:
        raise RecipeError(f"--layers {layers}: {size} has {most}; give 1 to {most}")
    config["num_hidden_layers"] = layers or most
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][: layers or most]
    if vocabulary is not None:
        end = vocabulary - len(SPECIAL_TOKENS)
        config |= {"vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end}
        config |= {"pad_token_id": end} if "pad_token_id" in config else {}
    return config


def _ordinary_tokens(config: dict[str, Any]) -> int:
    """Number of the invented tokenizer's tokens that are not special.

    They come before the end token where a released tokenizer has it last, and fill the vocabulary
    otherwise.
    """
    end, room = config["eos_token_id"], config["vocab_size"] - len(SPECIAL_TOKENS)
    return end if isinstance(end, int) and BYTES <= end <= room else room


def make(config: dict[str, Any], out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Writes a checkpoint directory, one tensor in memory at a time.

    Args:
        config: Content of `config.json`.
        out: Folder of the checkpoint; is created and must be empty.
        shard_bytes: Limit of a shard, unless one tensor is larger.

    Returns:
        Bytes of tensors.

    Raises:
        ResourceError: The directory holds files, or the disk is too small.
    """
    spec = spec_of(config)
    size_bytes = sum(_size(tensor) for tensor in spec.tensors.values())
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ResourceError(f"{out} holds files; give a new directory")
    free = shutil.disk_usage(out).free
    if size_bytes > free:
        raise ResourceError(f"{out}: {size_bytes} bytes are needed, the disk has {free} free")
    table = _quantiles()
    shards = list(_shards(spec, shard_bytes))
    with CheckpointWriter(out, config, num_shards=len(shards)) as writer:
        for shard in shards:
            writer.stream_shard(
                {name: (DTYPE, spec.tensors[name].shape) for name in shard},
                prefetched(
                    shard,
                    lambda name: _values(spec, name, table),
                    lambda name: _size(spec.tensors[name]),
                    AHEAD_BYTES,
                ),
            )
    _write_tokenizer(out, config)
    return size_bytes


def _size(tensor: TensorSpec) -> int:
    size_bytes: int = tensor.elements * DTYPE.itemsize
    return size_bytes


def _shards(spec: ModelSpec, most_bytes: int) -> Iterator[list[str]]:
    """Names of the tensors of each shard, in order, as many as fit."""
    shard: list[str] = []
    held = 0
    for name, tensor in spec.tensors.items():
        if shard and held + _size(tensor) > most_bytes:
            yield shard
            shard, held = [], 0
        shard.append(name)
        held += _size(tensor)
    yield shard


def _quantiles() -> NDArray[np.uint16]:
    """Bits in bfloat16 of 65,536 equally likely values of a standard normal variable."""
    normal = statistics.NormalDist()
    half = [normal.inv_cdf((2 * i + 1) / 2**17) for i in range(2**15)]
    values = np.array([*half, *(-value for value in reversed(half))])
    bits: NDArray[np.uint16] = values.astype(DTYPE).view(np.uint16)
    return bits


def _values(spec: ModelSpec, name: str, table: NDArray[np.uint16]) -> NDArray[Any]:
    """Values of one tensor, the same at every call."""
    tensor = spec.tensors[name]
    random = np.random.Generator(np.random.SFC64([SEED, *name.encode()]))
    raw = random.integers(0, 2**64, -(-tensor.elements // 4), dtype=np.uint64)
    bits = table[raw.view(np.uint16)[: tensor.elements]].reshape(tensor.shape)
    if tensor.tensor_class == "norms":
        norms: NDArray[Any] = (1 - tensor.offset + bits.view(DTYPE).astype(np.float32) / 8).astype(
            DTYPE
        )
        return norms
    if tensor.tensor_class == "embeddings":
        exponent = -5
    elif len(tensor.shape) == 1:
        exponent = -2
    else:
        # Root of the number of terms, so that sums are about 1. Outputs to the residual stream
        # are smaller, or it would grow with every layer.
        exponent = -round(np.log2(tensor.shape[1]) / 2)
        exponent -= 2 if tensor.role in RESIDUAL_ROLES else 0
    shift = np.full((*tensor.shape[:1], *(1,) * (bits.ndim - 1)), exponent, np.int16)
    if tensor.expert is not None:
        spread = np.random.default_rng([SEED, tensor.layer or 0, tensor.expert])
        shift += np.int16(spread.integers(-1, 1))
        # The rows of gate and up are the dimensions; those of down are outputs.
        if tensor.role != "down":
            shift += random.choice(np.array([-2, -1, 0, 1], np.int16), shift.shape)
    # The power of two is added to the exponent, above the 7 bits of the mantissa; no quantile is
    # near an end of the exponent's range.
    bits += (shift << 7).view(np.uint16)
    return bits.view(DTYPE)


def _write_tokenizer(out: Path, config: dict[str, Any]) -> None:
    """Writes a byte-level BPE with as many ordinary tokens as the released one or the model has.

    Its tokens are bytes, pairs, and pairs with one more character, the commonest first, so that
    English takes about one token for two characters.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # In the alphabet of byte-level BPE, the space is written like this.
    letters = "\u0120etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ0123456789.,:;!?'\"()-"
    tokens = list(alphabet)
    most = _ordinary_tokens(config)
    merges: list[tuple[str, str]] = []
    for length in (2, 3):
        heads = letters if length == 2 else [head + tail for head, tail in merges]
        for head in heads:
            for tail in letters:
                if len(tokens) < most:
                    merges.append((head, tail))
                    tokens.append(head + tail)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    end = SPECIAL_TOKENS[0]
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "model_max_length": config["max_position_embeddings"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    write_json(
        out / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id")},
    )


if __name__ == "__main__":
    sys.exit(main())
