"""GLM-4-MoE-Lite: GLM-4.7-Flash."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    config_keys=common.CONFIG_KEYS | common.LATENT_KEYS | common.DEEPSEEK_KEYS,
    config_defaults={
        "q_lora_rank": 768,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
        "first_k_dense_replace": 1,
    },
    refused={
        "attention_bias": (False,),
        # transformers reads mlp_layer_types in its place.
        "first_k_dense_replace": (1,),
        "rope_interleave": (True,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.LATENT_ATTENTION,
        common.EXPERT_NORM,
        *common.SIGMOID_EXPERTS,
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("first_k", "mlp_layer_types"),
    routing=common.SIGMOID_ROUTING,
    router_float32=True,
    shared_gate=False,
    predicts_ahead=True,
)
