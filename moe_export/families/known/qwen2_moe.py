"""Qwen2-MoE: Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

_MLP = common.LAYER + "mlp."

FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    config_keys=common.CONFIG_KEYS | common.QWEN_EXPERT_KEYS,
    config_defaults={
        "num_key_value_heads": 16,
        "qkv_bias": True,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
    },
    refused={"use_sliding_window": (False,), "attention_bias": (False,)},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        *common.QKV_BIAS,
        common.OUT,
        common.EXPERT_NORM,
        common.router(_MLP + "gate.weight"),
        *common.experts(_MLP + "experts.{expert}."),
        *common.shared_expert(_MLP + "shared_expert."),
        common.shared_router(_MLP + "shared_expert_gate.weight"),
        *common.dense_mlp(_MLP),
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("decoder_sparse_step", "mlp_only_layers"),
    genai_type="qwen2",
    in_transformers_js=True,
)
