"""A checkpoint of Qwen2-MoE as a GGUF file in bfloat16, without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from moe_export.checkpoint import Checkpoint, read_config
from tools.gguf.writer import BFLOAT16, FLOAT32, Stored, write_gguf

WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    "mlp.shared_expert.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_expert.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_expert.down_proj.weight": "ffn_down_shexp.weight",
}
FLOAT, HALF = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
EXPERTS = ("gate", "up", "down")
IN_FLOAT32 = ("norm.weight", "bias", "ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight")
"""Endings of names that llama.cpp wants in float32."""


def convert(checkpoint_dir: Path, out: Path) -> None:
    """Writes the file.

    Args:
        checkpoint_dir: Folder of a checkpoint whose experts have one width.
        out: Path of the file.

    Raises:
        CheckpointError: The checkpoint is incomplete.
    """
    checkpoint, config = Checkpoint(checkpoint_dir), read_config(checkpoint_dir)
    names = {WHOLE[name]: [name] for name in WHOLE}
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"model.layers.{layer}", f"blk.{layer}"
        names |= {f"{theirs}.{name}": [f"{ours}.{known}"] for known, name in LAYER.items()}
        for matrix in EXPERTS:
            names[f"{theirs}.ffn_{matrix}_exps.weight"] = [
                f"{ours}.mlp.experts.{expert}.{matrix}_proj.weight"
                for expert in range(config["num_experts"])
            ]
    tensors = {name: _stored(checkpoint, name, sources) for name, sources in names.items()}
    write_gguf(out, facts_of(config), tensors)


def facts_of(config: dict[str, Any]) -> dict[str, Any]:
    """Metadata from a checkpoint's config."""
    size = "qwen2moe."
    return {
        "general.architecture": "qwen2moe",
        f"{size}block_count": config["num_hidden_layers"],
        f"{size}context_length": config["max_position_embeddings"],
        f"{size}embedding_length": config["hidden_size"],
        f"{size}feed_forward_length": config["intermediate_size"],
        f"{size}expert_feed_forward_length": config["moe_intermediate_size"],
        f"{size}expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
        f"{size}expert_count": config["num_experts"],
        f"{size}expert_used_count": config["num_experts_per_tok"],
        f"{size}attention.head_count": config["num_attention_heads"],
        f"{size}attention.head_count_kv": config["num_key_value_heads"],
        f"{size}attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{size}rope.freq_base": float(config["rope_theta"]),
        f"{size}vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "no_vocab",
    }


def _stored(checkpoint: Checkpoint, name: str, sources: Sequence[str]) -> Stored:
    """A tensor that is read when it is written; several matrices lie one after another."""
    shape = checkpoint.tensors[sources[0]].shape
    if "shexp" in name and shape[0] == 1:
        shape = shape[1:]
    if len(sources) > 1:
        shape = (len(sources), *shape)
    kind, dtype = (FLOAT32, FLOAT) if name.endswith(IN_FLOAT32) else (BFLOAT16, HALF)

    def content() -> bytes:
        arrays = [checkpoint.read(source).astype(dtype, copy=False) for source in sources]
        return b"".join(array.tobytes() for array in arrays)

    return Stored(shape, kind, int(np.prod(shape)) * dtype.itemsize, content)
