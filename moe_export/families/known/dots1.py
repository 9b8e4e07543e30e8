"""Dots1: dots.llm1."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

FAMILY = Family(
    model_type="dots1",
    architecture="Dots1ForCausalLM",
    config_keys=common.CONFIG_KEYS | common.DEEPSEEK_KEYS,
    config_defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    refused={
        "moe_layer_freq": (1,),
        "scoring_func": ("sigmoid", "noaux_tc"),
        "topk_method": ("noaux_tc",),
    },
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
        *common.SIGMOID_EXPERTS,
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("first_k",),
    windows="layer_types",
    qk_norm="head",
    routing=common.SIGMOID_ROUTING,
    router_float32=True,
    shared_gate=False,
)
