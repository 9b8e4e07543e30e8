"""Writer of small GGUF files, and the Llama in one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from tools.gguf import writer

Content = tuple[tuple[int, ...], int, bytes]
"""Shape in numpy's order, number of the type, and bytes of a tensor."""


def write_gguf(path: Path, facts: dict[str, Any], tensors: dict[str, Content]) -> None:
    writer.write_gguf(path, facts, {name: stored(content) for name, content in tensors.items()})


def stored(content: Content) -> writer.Stored:
    shape, kind, data = content
    return writer.Stored(shape, kind, len(data), lambda: data)


def float32(values: np.ndarray) -> Content:
    return values.shape, 0, values.astype("<f4").tobytes()


def random_q4_1(shape: tuple[int, ...], rng: np.random.Generator) -> Content:
    """A tensor of random codes with a spread of about 0.1 around zero."""
    blocks = int(np.prod(shape)) // 32
    scale_N = rng.uniform(0.01, 0.03, blocks).astype("<f2")
    content = b"".join(
        struct.pack("<ee", scale, -7.5 * scale) + rng.bytes(16) for scale in scale_N.tolist()
    )
    return shape, 3, content


def random_q8_0(shape: tuple[int, ...], rng: np.random.Generator) -> Content:
    blocks = int(np.prod(shape)) // 32
    return shape, 8, b"".join(struct.pack("<e", 0.004) + rng.bytes(32) for _ in range(blocks))


def write_small_llama(path: Path, hidden_units: int = 64) -> None:
    """Writes a Llama of two layers with random weights and one token per byte."""
    rng = np.random.default_rng(0)
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|a|>", "<|b|>", "he", "19"]
    facts = {
        "general.architecture": "llama",
        "general.name": "small",
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": hidden_units,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 1, 1],
        "tokenizer.ggml.merges": ["h e", "1 9"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
    }
    tensors = {"token_embd.weight": random_q8_0((len(tokens), 64), rng)}
    for layer in range(2):
        shapes = {
            "attn_q": (64, 64),
            "attn_k": (32, 64),
            "attn_v": (32, 64),
            "attn_output": (64, 64),
            "ffn_gate": (hidden_units, 64),
            "ffn_up": (hidden_units, 64),
            "ffn_down": (64, hidden_units),
        }
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = random_q4_1(shape, rng)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = float32(rng.uniform(0.5, 1.5, 64))
    tensors["output_norm.weight"] = float32(rng.uniform(0.5, 1.5, 64))
    write_gguf(path, facts, tensors)
