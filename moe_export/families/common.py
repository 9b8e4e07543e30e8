"""Config keys and tensor rules that most families share."""

from __future__ import annotations

from dataclasses import replace

from moe_export.families.base import FusedRule, TensorRule
from moe_export.families.features import Mixer, Routing

CONFIG_KEYS: dict[str, str | tuple[str, ...]] = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "top_k": "num_experts_per_tok",
    "norm_epsilon": "rms_norm_eps",
    "rope_theta": "rope_theta",
}
"""Config key of each size that has the same key in every family."""

LATENT_KEYS: dict[str, str | tuple[str, ...]] = {
    "q_latent": "q_lora_rank",
    "kv_latent": "kv_lora_rank",
    "rope_dim": "qk_rope_head_dim",
    "nope_dim": "qk_nope_head_dim",
    "value_dim": "v_head_dim",
}
"""Config key of each size of DeepSeek's latent attention."""

DEEPSEEK_KEYS: dict[str, str | tuple[str, ...]] = {
    "num_experts": "n_routed_experts",
    "width": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "dense_width": "intermediate_size",
    "first_k": "first_k_dense_replace",
    "routing_scale": "routed_scaling_factor",
    "groups": "n_group",
    "top_groups": "topk_group",
}
"""Config key of each size of experts and their choice, as DeepSeek names them."""

QWEN_EXPERT_KEYS: dict[str, str | tuple[str, ...]] = {
    "num_experts": "num_experts",
    "width": "moe_intermediate_size",
    "shared_width": "shared_expert_intermediate_size",
    "dense_width": "intermediate_size",
}
"""Config key of each size of experts, as Qwen names them."""

DELTA_KEYS: dict[str, str | tuple[str, ...]] = {
    "rotated": "partial_rotary_factor",
    "interval": "full_attention_interval",
    "delta_key_heads": "linear_num_key_heads",
    "delta_value_heads": "linear_num_value_heads",
    "delta_key_dim": "linear_key_head_dim",
    "delta_value_dim": "linear_value_head_dim",
    "delta_taps": "linear_conv_kernel_dim",
}
"""Config key of each size of Qwen3-Next's mixers."""

DELTA_DEFAULTS = {
    "head_dim": 256,
    "num_key_value_heads": 2,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "norm_topk_prob": True,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
"""Values that transformers assumes for absent keys of Qwen3-Next and Qwen3.5."""

SIGMOID_ROUTING = Routing(
    "sigmoid", has_choice_bias=True, group_score="best_two", total_epsilon=1e-20
)
"""Routing of DeepSeek-V3 (https://arxiv.org/abs/2412.19437, section 2.1.2) and GLM-4.5."""

LAYER = "model.layers.{layer}."
ATTENTION = LAYER + "self_attn."

WHOLE_MODEL = (
    TensorRule("embedding", "model.embed_tokens.weight", ("vocab", "hidden"), "embeddings"),
    TensorRule("final_norm", "model.norm.weight", ("hidden",), "norms"),
    TensorRule("lm_head", "lm_head.weight", ("vocab", "hidden"), "embeddings", "has_lm_head"),
)

INPUT_NORM = TensorRule("input_norm", LAYER + "input_layernorm.weight", ("hidden",), "norms")
EXPERT_NORM = TensorRule(
    "expert_norm", LAYER + "post_attention_layernorm.weight", ("hidden",), "norms"
)


def from_one(*rules: TensorRule) -> tuple[TensorRule, ...]:
    """Rules of norms that store the difference of their weights from 1."""
    return tuple(replace(rule, offset=1.0) for rule in rules)


def of_mixer(mixer: Mixer, *rules: TensorRule) -> tuple[TensorRule, ...]:
    """Rules that hold in layers with one kind of mixer alone."""
    return tuple(replace(rule, mixer=mixer) for rule in rules)


QKV = (
    TensorRule("q", ATTENTION + "q_proj.weight", ("q", "hidden"), "attention"),
    TensorRule("k", ATTENTION + "k_proj.weight", ("kv", "hidden"), "attention"),
    TensorRule("v", ATTENTION + "v_proj.weight", ("kv", "hidden"), "attention"),
)
QKV_BIAS = (
    TensorRule("q_bias", ATTENTION + "q_proj.bias", ("q",), "attention", "qkv_bias"),
    TensorRule("k_bias", ATTENTION + "k_proj.bias", ("kv",), "attention", "qkv_bias"),
    TensorRule("v_bias", ATTENTION + "v_proj.bias", ("kv",), "attention", "qkv_bias"),
)
OUT = TensorRule("o", ATTENTION + "o_proj.weight", ("hidden", "q"), "attention")
LATENT_ATTENTION = (
    TensorRule("q", ATTENTION + "q_proj.weight", ("q", "hidden"), "attention", "has_whole_queries"),
    TensorRule(
        "q_latent",
        ATTENTION + "q_a_proj.weight",
        ("q_latent", "hidden"),
        "attention",
        "has_query_latent",
    ),
    TensorRule(
        "q_latent_norm",
        ATTENTION + "q_a_layernorm.weight",
        ("q_latent",),
        "norms",
        "has_query_latent",
    ),
    TensorRule(
        "q_expand",
        ATTENTION + "q_b_proj.weight",
        ("q", "q_latent"),
        "attention",
        "has_query_latent",
    ),
    TensorRule(
        "kv_latent",
        ATTENTION + "kv_a_proj_with_mqa.weight",
        ("kv_latent_and_rope", "hidden"),
        "attention",
    ),
    TensorRule("kv_latent_norm", ATTENTION + "kv_a_layernorm.weight", ("kv_latent",), "norms"),
    TensorRule(
        "kv_expand",
        ATTENTION + "kv_b_proj.weight",
        ("kv_expanded", "kv_latent"),
        "attention",
    ),
    TensorRule("o", ATTENTION + "o_proj.weight", ("hidden", "values"), "attention"),
)
"""Rules of DeepSeek's latent attention."""

HEAD_NORMS = (
    TensorRule("q_norm", ATTENTION + "q_norm.weight", ("head",), "norms"),
    TensorRule("k_norm", ATTENTION + "k_norm.weight", ("head",), "norms"),
)
"""Norms of the queries and keys of each head."""

GATED_ATTENTION = (
    TensorRule("q", ATTENTION + "q_proj.weight", ("gated_q", "hidden"), "attention"),
    *QKV[1:],
    OUT,
    *from_one(*HEAD_NORMS),
)
"""Rules of Qwen3-Next's attention, whose queries come with a gate of the output."""

_DELTA = LAYER + "linear_attn."

DELTA_NET = (
    TensorRule(
        "delta_conv", _DELTA + "conv1d.weight", ("delta_channels", "one", "delta_taps"), "attention"
    ),
    TensorRule("delta_bias", _DELTA + "dt_bias", ("delta_heads",), "attention"),
    TensorRule("delta_log_rate", _DELTA + "A_log", ("delta_heads",), "attention"),
    TensorRule("delta_norm", _DELTA + "norm.weight", ("delta_value",), "norms"),
    TensorRule("delta_out", _DELTA + "out_proj.weight", ("hidden", "delta_values"), "attention"),
)
"""Rules of a gated delta net, but for the product with its input."""

OUT_BIAS = TensorRule("o_bias", ATTENTION + "o_proj.bias", ("hidden",), "attention", "o_bias")


def router(name: str) -> TensorRule:
    """Rule of the router; its name contains {layer}."""
    return TensorRule("router", name, ("experts", "hidden"), "router", layers="moe")


def choice_bias(name: str) -> TensorRule:
    """Rule of the bias of the choice of experts; its name contains {layer}."""
    return TensorRule("choice_bias", name, ("experts",), "router", layers="moe", is_wide=True)


def experts(
    prefix: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[TensorRule, ...]:
    """Rules of an expert's three matrices; the prefix contains {layer} and {expert}."""
    return (
        TensorRule("gate", f"{prefix}{gate}.weight", ("width", "hidden"), "experts", layers="moe"),
        TensorRule("up", f"{prefix}{up}.weight", ("width", "hidden"), "experts", layers="moe"),
        TensorRule("down", f"{prefix}{down}.weight", ("hidden", "width"), "experts", layers="moe"),
    )


def shared_expert(prefix: str) -> tuple[TensorRule, ...]:
    """Rules of the shared expert's three matrices; the prefix contains {layer}."""
    return tuple(
        TensorRule(
            f"shared_{role}",
            f"{prefix}{role}_proj.weight",
            shape,
            "shared_expert",
            "has_shared_expert",
            "moe",
        )
        for role, shape in (
            ("gate", ("shared", "hidden")),
            ("up", ("shared", "hidden")),
            ("down", ("hidden", "shared")),
        )
    )


def shared_router(name: str) -> TensorRule:
    """Rule of the shared expert's own gate; its name contains {layer}."""
    when = "has_shared_expert"
    return TensorRule("shared_router", name, ("one", "hidden"), "shared_expert", when, "moe")


def dense_mlp(
    prefix: str, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> tuple[TensorRule, ...]:
    """Rules of the MLP's three matrices in layers without experts; the prefix contains {layer}."""
    return tuple(
        TensorRule(f"dense_{role}", f"{prefix}{name}.weight", shape, "dense_mlp", layers="dense")
        for role, name, shape in (
            ("gate", gate, ("dense", "hidden")),
            ("up", up, ("dense", "hidden")),
            ("down", down, ("hidden", "dense")),
        )
    )


SIGMOID_EXPERTS = (
    router(LAYER + "mlp.gate.weight"),
    choice_bias(LAYER + "mlp.gate.e_score_correction_bias"),
    *experts(LAYER + "mlp.experts.{expert}."),
    *shared_expert(LAYER + "mlp.shared_experts."),
    *dense_mlp(LAYER + "mlp."),
)
"""Rules of the experts that go with `SIGMOID_ROUTING`, and of layers without experts."""

FUSED_EXPERTS = (
    FusedRule(("gate", "up"), LAYER + "mlp.experts.gate_up_proj"),
    FusedRule(("down",), LAYER + "mlp.experts.down_proj"),
)
