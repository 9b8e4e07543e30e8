"""DeepSeek-V2: DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family

_MLP = common.LAYER + "mlp."

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    config_keys=common.CONFIG_KEYS | common.LATENT_KEYS | common.DEEPSEEK_KEYS,
    config_defaults={"q_lora_rank": 1536, "rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    refused={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "moe_layer_freq": (1,),
        "scoring_func": ("softmax",),
        "topk_method": ("greedy", "group_limited_greedy"),
        # transformers ignores this key, but DeepSeek's own code does not.
        "norm_topk_prob": (False,),
    },
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.LATENT_ATTENTION,
        common.EXPERT_NORM,
        common.router(_MLP + "gate.weight"),
        *common.experts(_MLP + "experts.{expert}."),
        *common.shared_expert(_MLP + "shared_experts."),
        *common.dense_mlp(_MLP),
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("first_k",),
    normalize_top_k=False,
    router_float32=True,
    shared_gate=False,
)
