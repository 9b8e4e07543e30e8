"""Solar-Open: Solar-Open-100B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

FAMILY = Family(
    model_type="solar_open",
    architecture="SolarOpenForCausalLM",
    config_keys=common.CONFIG_KEYS | common.DEEPSEEK_KEYS,
    config_defaults={
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "norm_topk_prob": True,
    },
    refused={
        "first_k_dense_replace": (0,),
        "use_qk_norm": (False,),
        "scoring_func": ("sigmoid",),
        "topk_method": ("noaux_tc",),
    },
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        *common.QKV_BIAS,
        common.OUT,
        common.EXPERT_NORM,
        *common.SIGMOID_EXPERTS,
    ),
    fused=common.FUSED_EXPERTS,
    routing=common.SIGMOID_ROUTING,
    router_float32=True,
    shared_gate=False,
)
