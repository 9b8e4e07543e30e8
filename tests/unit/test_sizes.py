"""Sizes of Qwen1.5-MoE-A2.7B, by arithmetic alone, against those that are known of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moe_export.families import spec_of
from moe_export.families.base import ModelSpec

CONFIG = {
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


def kept(share: float) -> ModelSpec:
    spec = spec_of(CONFIG)
    return replace(spec, widths=((round(1408 * share),) * 60,) * 24)


@pytest.mark.parametrize(("share", "billions"), [(1.0, 14.3158), (0.5, 8.0872)])
def test_parameters_before_and_after_half_of_the_dimensions(share: float, billions: float) -> None:
    parameters = sum(tensor.elements for tensor in kept(share).tensors.values())
    assert round(parameters / 1e9, 4) == billions


def test_half_of_the_dimensions_are_43_and_a_half_percent_of_the_parameters() -> None:
    before, after = (sum(t.elements for t in kept(s).tensors.values()) for s in (1.0, 0.5))
    assert round(100 * (before - after) / before, 1) == 43.5
