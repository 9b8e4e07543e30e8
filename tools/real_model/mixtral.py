"""A dense Llama of a GGUF file as the Mixtral that computes the same function.

The hidden units of each dense MLP are divided into contiguous experts of equal width. Every token
gets all experts, and the router is zero, so that each has the weight 1 / E. `down` is multiplied by
E, a power of two, which is exact in floating point. The sum over the experts is then that over all
hidden units:

    sum over e of 1/E * (E * down[e]) (silu(gate[e] x) * up[e] x) = down (silu(gate x) * up x)

Legend: E experts, D hidden, I hidden units of the dense MLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.checkpoint import CheckpointWriter, write_json
from moe_export.errors import CheckpointError
from tools.real_model.gguf_file import GgufFile
from tools.real_model.tokenizer import write_tokenizer

EXPERTS = 8
DTYPE = np.dtype(np.float16)
"""Stored dtype: the scales in the GGUF file are float16 too."""

_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Name of a tensor in the GGUF file to that in a checkpoint, within a layer."""

_EXPERT = {"mlp.gate_proj": "w1", "mlp.up_proj": "w3", "mlp.down_proj": "w2"}

Named = tuple[str, NDArray[np.float32]]


def write_mixtral(file: GgufFile, out: Path, layers: int | None = None) -> None:
    """Writes the Mixtral as a checkpoint directory with its tokenizer.

    Args:
        file: GGUF file of a model of the Llama architecture.
        out: Folder of the checkpoint; is created.
        layers: Number of leading layers to keep; None for all.

    Raises:
        CheckpointError: The file holds another architecture, or widths that cannot be divided.
    """
    dense = dense_config(file, layers)
    config = mixtral_config(dense)
    out.mkdir(parents=True, exist_ok=True)
    with CheckpointWriter(out, config, num_shards=1) as writer:
        writer.write_shard(
            {
                name: _stored(name, values)
                for dense_name, dense_values in dense_tensors(file, dense)
                for name, values in _as_experts(dense_name, dense_values)
            }
        )
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    write_json(out / "generation_config.json", ends)
    write_tokenizer(file, out)


def dense_config(file: GgufFile, layers: int | None = None) -> dict[str, Any]:
    """Returns the config of the dense Llama.

    Raises:
        CheckpointError: The file holds another architecture.
    """
    facts = file.facts
    architecture = facts.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(f"{file.path} holds a model of kind {architecture!r}, not 'llama'")
    most = int(facts["llama.block_count"])
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": min(layers or most, most),
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": round(facts["llama.attention.layer_norm_rms_epsilon"], 12),
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "hidden_act": "silu",
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "torch_dtype": DTYPE.name,
    }


def mixtral_config(dense: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of the Mixtral that stands for a dense Llama.

    Raises:
        CheckpointError: The hidden units cannot be divided among the experts.
    """
    width, rest = divmod(dense["intermediate_size"], EXPERTS)
    if rest:
        raise CheckpointError(
            f"{dense['intermediate_size']} hidden units cannot be divided among {EXPERTS} experts"
        )
    return dense | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": width,
        "head_dim": dense["hidden_size"] // dense["num_attention_heads"],
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS,
        "sliding_window": None,
    }


def dense_tensors(file: GgufFile, config: dict[str, Any]) -> Iterator[Named]:
    """Yields the tensors of the dense Llama by their names in a checkpoint."""
    yield "model.embed_tokens.weight", file.read("token_embd.weight")
    for layer in range(config["num_hidden_layers"]):
        for stored, name in _LAYER.items():
            values = file.read(f"blk.{layer}.{stored}.weight")
            if stored == "attn_q":
                values = rotary_halves(values, config["num_attention_heads"])
            if stored == "attn_k":
                values = rotary_halves(values, config["num_key_value_heads"])
            yield f"model.layers.{layer}.{name}.weight", values
    yield "model.norm.weight", file.read("output_norm.weight")
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", file.read("output.weight")


def rotary_halves(rows_QD: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Puts the rows of each head in the order of transformers: first halves of pairs, then second.

    llama.cpp rotates neighbouring rows, transformers rotates rows that are half a head apart.

    >>> rotary_halves(np.arange(4, dtype=np.float32)[:, None], heads=1)[:, 0].tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    size = len(rows_QD) // heads
    pairs = rows_QD.reshape(heads, size // 2, 2, -1)
    return pairs.swapaxes(1, 2).reshape(rows_QD.shape)


def _as_experts(name: str, values: NDArray[np.float32]) -> Iterator[Named]:
    """Yields the tensors of the Mixtral that one dense tensor becomes."""
    layer, _, role = name.removesuffix(".weight").rpartition(".mlp.")
    if not layer:
        yield name, values
        return
    module = f"{layer}.block_sparse_moe"
    weight = _EXPERT[f"mlp.{role}"]
    if weight == "w2":
        values = values * EXPERTS
    for expert, part in enumerate(np.split(values, EXPERTS, axis=int(weight == "w2"))):
        yield f"{module}.experts.{expert}.{weight}.weight", part
    if weight == "w1":
        yield f"{module}.gate.weight", np.zeros((EXPERTS, values.shape[1]), np.float32)


def _stored(name: str, values: NDArray[np.float32]) -> NDArray[Any]:
    """Returns a tensor in the stored dtype.

    Raises:
        CheckpointError: A value exceeds the dtype.
    """
    largest = float(np.abs(values).max())
    if largest > np.finfo(DTYPE).max:
        raise CheckpointError(f"{name} holds {largest:g}, which {DTYPE.name} cannot")
    return np.ascontiguousarray(values.astype(DTYPE))
