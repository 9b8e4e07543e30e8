"""DeepSeek-V3: DeepSeek-V3, DeepSeek-R1, Moonlight-16B-A3B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
    config_keys=common.CONFIG_KEYS | common.LATENT_KEYS | common.DEEPSEEK_KEYS,
    config_defaults={
        "q_lora_rank": 1536,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
    },
    refused={
        "attention_bias": (False,),
        "moe_layer_freq": (1,),
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
    dense_layers=("first_k",),
    routing=common.SIGMOID_ROUTING,
    router_float32=True,
    shared_gate=False,
    predicts_ahead=True,
    in_transformers_js=True,
)
