"""Tiny checkpoints with random weights, and pruned copies of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from moe_export.checkpoint import Checkpoint, CheckpointWriter, write_json
from moe_export.families import spec_of
from moe_export.families.base import PRUNED_PREFIX, SHARED_WIDTHS_KEY, WIDTHS_KEY
from moe_export.families.features import UNITS_ROLE

Shared = Sequence[int | None] | None
"""Widths of the shared expert by layer; None to keep it whole."""

END, START, PAD = "<|endoftext|>", "<|im_start|>", "<|pad|>"

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": False,
    "qkv_bias": True,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 258,
    "torch_dtype": "float32",
}


def tiny_checkpoint(
    directory: Path,
    *,
    base: dict[str, Any] = CONFIG,
    seed: int = 0,
    dtype: str = "float32",
    **overrides: Any,
) -> Path:
    """Writes a Qwen2-MoE of about 0.2 M parameters, in the layout of transformers 4.

    Args:
        directory: Folder of the checkpoint; is created.
        base: Config of the model, also of another family.
        seed: Seed of the weights.
        dtype: Stored dtype: float32, float16 or bfloat16.
        overrides: Config keys to replace.

    Returns:
        The directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = base | {"torch_dtype": dtype} | overrides
    random = np.random.default_rng(seed)
    tensors = {}
    # Vectors and biases that tuning adds leave all other weights as they are without them.
    added = np.random.default_rng((seed, 1))
    for name, spec in spec_of(config).tensors.items():
        noise = (random if spec.stored is None else added).standard_normal(spec.shape)
        # Large enough that routing, rotary embedding and biases all show in the logits.
        match len(spec.shape), spec.tensor_class:
            case 1, "norms":
                values = 1 - spec.offset + 0.1 * noise
            case _ if spec.role.startswith("compressed"):
                values = 1 + 0.3 * noise
            case 1, _:
                values = 0.2 * noise
            case _, "embeddings":
                values = 0.5 * noise
            case 3, _:  # taps of a convolution, whose input may be a product
                values = noise * 0.4 / np.sqrt(spec.shape[-1])
            case _:
                values = noise * 1.3 / np.sqrt(spec.shape[-1])
        tensors[name] = values.astype(np.dtype(spec.stored or dtype))
    with CheckpointWriter(directory, config, num_shards=2) as writer:
        names = list(tensors)
        for half in (names[::2], names[1::2]):
            writer.write_shard({name: tensors[name] for name in half})
    _write_tokenizer(directory)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(directory / "generation_config.json", generation)
    return directory


def pruned_checkpoint(
    source: Path, directory: Path, widths: Sequence[Sequence[int]], shared: Shared = None
) -> Path:
    """Writes a pruned copy.

    Args:
        source: Folder of the checkpoint to copy.
        directory: Folder of the copy.
        widths: First dimensions that each expert keeps, by layer and expert.
        shared: First dimensions that the shared expert keeps, by layer; None to keep all.

    Returns:
        The directory.
    """
    config = Checkpoint(source).config
    config |= {
        "model_type": PRUNED_PREFIX + config["model_type"].removeprefix(PRUNED_PREFIX),
        WIDTHS_KEY: [list(row) for row in widths],
    }
    if shared is not None:
        config[SHARED_WIDTHS_KEY] = list(shared)
    return _cut(source, directory, widths, shared, config, pad=False)


def masked_checkpoint(
    source: Path, directory: Path, widths: Sequence[Sequence[int]], shared: Shared = None
) -> Path:
    """Writes a copy of the same shapes in which the dimensions that pruning removes are zero."""
    return _cut(source, directory, widths, shared, Checkpoint(source).config, pad=True)


def _cut(
    source: Path,
    directory: Path,
    widths: Sequence[Sequence[int]],
    shared: Shared,
    config: dict[str, Any],
    *,
    pad: bool,
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(source)
    tensors = {}
    for name, spec in spec_of(checkpoint.config).tensors.items():
        tensor = checkpoint.read(name)
        width = None
        if spec.layer is not None and spec.expert is not None:
            width = widths[spec.layer][spec.expert]
        elif shared is not None and spec.role in ("shared_gate", "shared_up", "shared_down"):
            assert spec.layer is not None
            width = shared[spec.layer]
        if width is not None:
            axis = 1 if spec.role.endswith("down") else 0
            kept, removed = np.split(tensor, [width], axis=axis)
            tensor = np.concatenate([kept, 0 * removed], axis=axis) if pad else kept
        tensors[name] = tensor
    for name, spec in spec_of(config).tensors.items():
        if spec.role == UNITS_ROLE:
            assert spec.layer is not None
            units = [np.arange(width) for width in widths[spec.layer]]
            tensors[name] = np.concatenate(units).astype(np.float32)
    with CheckpointWriter(directory, config, num_shards=1) as writer:
        writer.write_shard(tensors)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    return directory


def _write_tokenizer(directory: Path) -> None:
    """Writes a tokenizer with one token per byte, 0 to 255, and three special tokens after."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END, START, PAD])
    tokenizer.save(str(directory / "tokenizer.json"))
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "bos_token": END,
        "pad_token": PAD,
        "model_max_length": 128,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
