"""Qwen2-MoE: Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B."""

from __future__ import annotations

from moe_export.families.base import Family, TensorRule

_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."
_EXPERT = _MLP + "experts.{expert}."
_SHARED = _MLP + "shared_expert."

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    config_keys={
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "num_experts": "num_experts",
        "top_k": "num_experts_per_tok",
        "width": "moe_intermediate_size",
        "shared_width": "shared_expert_intermediate_size",
        "norm_epsilon": "rms_norm_eps",
        "rope_theta": "rope_theta",
    },
    config_defaults={"qkv_bias": True, "rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    refused={
        "hidden_act": ("silu",),
        "use_sliding_window": (False,),
        "rope_scaling": (),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    moe_module="mlp",
    tensors=(
        TensorRule("embedding", "model.embed_tokens.weight", ("vocab", "hidden"), "embeddings"),
        TensorRule("final_norm", "model.norm.weight", ("hidden",), "norms"),
        TensorRule("lm_head", "lm_head.weight", ("vocab", "hidden"), "embeddings", "has_lm_head"),
        TensorRule("input_norm", _LAYER + "input_layernorm.weight", ("hidden",), "norms"),
        TensorRule("q", _ATTENTION + "q_proj.weight", ("q", "hidden"), "attention"),
        TensorRule("k", _ATTENTION + "k_proj.weight", ("kv", "hidden"), "attention"),
        TensorRule("v", _ATTENTION + "v_proj.weight", ("kv", "hidden"), "attention"),
        TensorRule("q_bias", _ATTENTION + "q_proj.bias", ("q",), "attention", "qkv_bias"),
        TensorRule("k_bias", _ATTENTION + "k_proj.bias", ("kv",), "attention", "qkv_bias"),
        TensorRule("v_bias", _ATTENTION + "v_proj.bias", ("kv",), "attention", "qkv_bias"),
        TensorRule("o", _ATTENTION + "o_proj.weight", ("hidden", "q"), "attention"),
        TensorRule("expert_norm", _LAYER + "post_attention_layernorm.weight", ("hidden",), "norms"),
        TensorRule("router", _MLP + "gate.weight", ("experts", "hidden"), "router"),
        TensorRule("gate", _EXPERT + "gate_proj.weight", ("width", "hidden"), "experts"),
        TensorRule("up", _EXPERT + "up_proj.weight", ("width", "hidden"), "experts"),
        TensorRule("down", _EXPERT + "down_proj.weight", ("hidden", "width"), "experts"),
        TensorRule(
            "shared_gate",
            _SHARED + "gate_proj.weight",
            ("shared", "hidden"),
            "shared_expert",
            "has_shared_expert",
        ),
        TensorRule(
            "shared_up",
            _SHARED + "up_proj.weight",
            ("shared", "hidden"),
            "shared_expert",
            "has_shared_expert",
        ),
        TensorRule(
            "shared_down",
            _SHARED + "down_proj.weight",
            ("hidden", "shared"),
            "shared_expert",
            "has_shared_expert",
        ),
        TensorRule(
            "shared_router",
            _MLP + "shared_expert_gate.weight",
            ("one", "hidden"),
            "shared_expert",
            "has_shared_expert",
        ),
    ),
)
