"""EXAONE-MoE: K-EXAONE-236B-A23B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, FusedRule

FAMILY = Family(
    model_type="exaone_moe",
    architecture="ExaoneMoeForCausalLM",
    config_keys=common.CONFIG_KEYS
    | common.DEEPSEEK_KEYS
    | {"num_experts": "num_experts", "num_shared_experts": "num_shared_experts"},
    config_defaults={
        "num_key_value_heads": 32,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
        "first_k_dense_replace": 1,
        "num_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "n_group": 1,
        "topk_group": 1,
        "sliding_window": 4096,
    },
    refused={"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        *common.HEAD_NORMS,
        common.OUT,
        common.EXPERT_NORM,
        common.router(common.LAYER + "mlp.gate.weight"),
        common.choice_bias(common.LAYER + "mlp.e_score_correction_bias"),
        *common.experts(common.LAYER + "mlp.experts.{expert}."),
        *common.shared_expert(common.LAYER + "mlp.shared_experts."),
        *common.dense_mlp(common.LAYER + "mlp."),
    ),
    fused=(
        *common.FUSED_EXPERTS,
        FusedRule(("choice_bias",), common.LAYER + "mlp.gate.e_score_correction_bias"),
    ),
    dense_layers=("first_k", "mlp_layer_types"),
    windows="layer_types",
    rotates_windows_alone=True,
    qk_norm="head",
    routing=common.SIGMOID_ROUTING,
    router_float32=True,
    shared_gate=False,
    ahead_prefix="mtp.",
)
