"""Config keys and tensor rules that most families share."""

from __future__ import annotations

from moe_export.families.base import FusedRule, TensorRule

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
OUT_BIAS = TensorRule("o_bias", ATTENTION + "o_proj.bias", ("hidden",), "attention", "o_bias")


def router(name: str) -> TensorRule:
    """Rule of the router; its name contains {layer}."""
    return TensorRule("router", name, ("experts", "hidden"), "router", layers="moe")


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


def dense_mlp(prefix: str) -> tuple[TensorRule, ...]:
    """Rules of the MLP's three matrices in layers without experts; the prefix contains {layer}."""
    return tuple(
        TensorRule(
            f"dense_{role}", f"{prefix}{role}_proj.weight", shape, "dense_mlp", layers="dense"
        )
        for role, shape in (
            ("gate", ("dense", "hidden")),
            ("up", ("dense", "hidden")),
            ("down", ("hidden", "dense")),
        )
    )


FUSED_EXPERTS = (
    FusedRule(("gate", "up"), LAYER + "mlp.experts.gate_up_proj"),
    FusedRule(("down",), LAYER + "mlp.experts.down_proj"),
)
