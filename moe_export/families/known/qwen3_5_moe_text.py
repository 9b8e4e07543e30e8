"""Qwen3.5-MoE, its language model: Qwen3.5-35B-A3B, Qwen3.6-35B-A3B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, TensorRule

_MLP = common.LAYER + "mlp."
_DELTA = common.LAYER + "linear_attn."

FAMILY = Family(
    model_type="qwen3_5_moe_text",
    architecture="Qwen3_5MoeForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {k: v for k, v in common.QWEN_EXPERT_KEYS.items() if k != "dense_width"}
    | common.DELTA_KEYS,
    config_defaults=common.DELTA_DEFAULTS,
    refused={"attention_bias": (False,)},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL[::2],
        *common.from_one(common.WHOLE_MODEL[1], common.INPUT_NORM),
        *common.of_mixer("attention", *common.GATED_ATTENTION),
        *common.of_mixer(
            "delta_net",
            TensorRule(
                "delta_qkv",
                _DELTA + "in_proj_qkv.weight",
                ("delta_channels", "hidden"),
                "attention",
            ),
            TensorRule(
                "delta_z", _DELTA + "in_proj_z.weight", ("delta_values", "hidden"), "attention"
            ),
            TensorRule(
                "delta_rate", _DELTA + "in_proj_b.weight", ("delta_heads", "hidden"), "attention"
            ),
            TensorRule(
                "delta_decay", _DELTA + "in_proj_a.weight", ("delta_heads", "hidden"), "attention"
            ),
            *common.DELTA_NET,
        ),
        *common.from_one(common.EXPERT_NORM),
        common.router(_MLP + "gate.weight"),
        *common.experts(_MLP + "experts.{expert}."),
        *common.shared_expert(_MLP + "shared_expert."),
        common.shared_router(_MLP + "shared_expert_gate.weight"),
    ),
    fused=common.FUSED_EXPERTS,
    mixers={"linear_attention": "delta_net", "full_attention": "attention"},
    gates_attention=True,
    qk_norm="head",
    normalize_top_k=True,
    ahead_prefix="mtp.",
    text_prefix="model.language_model.",
    vision_prefix="model.visual.",
)
