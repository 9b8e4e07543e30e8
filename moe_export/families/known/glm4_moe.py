"""GLM-4-MoE: GLM-4.5, GLM-4.5-Air, GLM-4.6."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, TensorRule

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    config_keys=common.CONFIG_KEYS | common.DEEPSEEK_KEYS | {"rotated": "partial_rotary_factor"},
    config_defaults={
        "num_key_value_heads": 8,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "partial_rotary_factor": 0.5,
    },
    refused={"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        *common.QKV_BIAS,
        TensorRule("q_norm", common.ATTENTION + "q_norm.weight", ("head",), "norms", "has_qk_norm"),
        TensorRule("k_norm", common.ATTENTION + "k_norm.weight", ("head",), "norms", "has_qk_norm"),
        common.OUT,
        common.EXPERT_NORM,
        *common.SIGMOID_EXPERTS,
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("first_k",),
    qk_norm="head",
    qk_norm_flag="use_qk_norm",
    routing=common.SIGMOID_ROUTING,
    router_float32=True,
    shared_gate=False,
    predicts_ahead=True,
)
