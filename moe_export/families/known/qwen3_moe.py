"""Qwen3-MoE: Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

_MLP = common.LAYER + "mlp."

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {
        # transformers 5 writes the second name.
        "num_experts": ("num_experts", "num_local_experts"),
        "width": "moe_intermediate_size",
        "dense_width": "intermediate_size",
    },
    config_defaults={
        "num_key_value_heads": 4,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    refused={},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        *common.QKV_BIAS,
        *common.HEAD_NORMS,
        common.OUT,
        common.OUT_BIAS,
        common.EXPERT_NORM,
        common.router(_MLP + "gate.weight"),
        *common.experts(_MLP + "experts.{expert}."),
        *common.dense_mlp(_MLP),
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("decoder_sparse_step", "mlp_only_layers"),
    windows="all",
    qk_norm="head",
    genai_type="qwen3",
    in_transformers_js=True,
)
