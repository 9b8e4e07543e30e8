"""Parameters and bytes by arithmetic alone.

python -m tools.pages.sizes                     writes docs/results/sizes.md, of Qwen1.5-MoE-A2.7B
python -m tools.pages.sizes CONFIG_JSON         prints the same for the model of a config

The graph is built without weights, so nothing but the config is read.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.graph import predicted_bytes
from moe_export.ort.predicted_memory import kv_cache_bytes
from moe_export.quantization import Quantization
from moe_export.reporting.units import percent, size

QWEN15_MOE = {
    "model_type": "qwen2_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}
"""Qwen1.5-MoE-A2.7B."""

REMOVED = (0.0, 0.25, 0.5)
FORMATS = {
    "float16": Quantization(),
    "int8": Quantization(experts="int8", dense="int8", group_size=32),
    "int4": Quantization(experts="int4", dense="int4", group_size=32),
}
CONTEXTS = (4096, 8192)


def kept(config: dict[str, Any], share: float) -> ModelSpec:
    """The model with every expert at a share of its width."""
    spec = spec_of(config)
    widths = tuple(tuple(round(width * share) for width in layer) for layer in spec.widths)
    return replace(spec, widths=widths)


def parameters(spec: ModelSpec) -> int:
    """How many a model has."""
    return sum(tensor.elements for tensor in spec.tensors.values())


def page(name: str, config: dict[str, Any]) -> str:
    """Title, introduction and table."""
    whole = kept(config, 1.0)
    whole_bytes = predicted_bytes(whole, "float16").total_bytes
    equally = [np.full(whole.num_experts, whole.top_k / whole.num_experts)] * whole.num_layers
    introduction = (
        "Made by `python -m tools.pages.sizes`, by arithmetic: what moe-export would write, in "
        "bytes of `model.onnx.data`. Every expert keeps the same share of its width. int8 and int4 "
        "are for experts, attention and lm_head in groups of 32 with scales in float16; all else "
        "is float16. What a token reads is with every expert chosen equally often."
    )
    lines = [
        f"# Sizes of {name}",
        "",
        introduction,
        "",
        "| removed | parameters | saved | format | bytes | GiB | of float16 whole | per token |",
        "| ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for removed in REMOVED:
        spec = kept(config, 1 - removed)
        count = parameters(spec)
        for word, quantization in FORMATS.items():
            model = replace(spec, quantization=quantization)
            found = predicted_bytes(model, "float16")
            lines.append(
                f"| {percent(removed)} | {count / 1e9:.4f} B | {1 - count / parameters(whole):.1%} "
                f"| {word} | {found.total_bytes:,} | {found.total_bytes / 2**30:.2f} "
                f"| {found.total_bytes / whole_bytes:.1%} "
                f"| {size(found.active_bytes(model, equally))} |"
            )
    each = kv_cache_bytes(whole, "float16", 1)
    caches = ", ".join(
        f"{each * tokens / 2**30:.2f} GiB at {tokens:,} tokens" for tokens in CONTEXTS
    )
    cache = (
        f"The KV cache comes on top, in float16 {each:,} bytes per token of context: {caches}. "
        "Pruning and quantizing do not change it."
    )
    return "\n".join([*lines, "", cache, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="config.json of another model")
    path = parser.parse_args().config
    if path is None:
        Path("docs/results/sizes.md").write_text(
            page("Qwen1.5-MoE-A2.7B", QWEN15_MOE), encoding="utf-8"
        )
    else:
        print(page(path.parent.name, json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
