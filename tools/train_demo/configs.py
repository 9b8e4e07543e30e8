"""The demo models' `config.json` and settings, by the name that `model.source` gives them."""

from __future__ import annotations

from typing import Any

from tools.train_demo.settings import BOS_ID, EOS_ID, PAD_ID, Settings

# Keys and names as transformers 4 and 5 both read them.
DEMO: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01,
    "output_router_logits": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "dtype": "float16",
}

# Experts of a quarter of the width, of which a token needs more.
NARROW: dict[str, Any] = DEMO | {
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}

CONFIGS = {"demo": DEMO, "demo-narrow": NARROW}

SETTINGS = {"demo": Settings(), "demo-narrow": Settings(steps=1500, threads=1)}
