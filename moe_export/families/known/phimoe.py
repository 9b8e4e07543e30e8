"""Phi-MoE: Phi-mini-MoE, Phi-tiny-MoE, Phi-3.5-MoE (to the 4,096 positions before longrope)."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, FusedRule, TensorRule
from moe_export.families.features import Routing

_MOE = common.LAYER + "block_sparse_moe."

FAMILY = Family(
    model_type="phimoe",
    architecture="PhimoeForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {
        "num_experts": "num_local_experts",
        "width": "intermediate_size",
        "router_jitter": "router_jitter_noise",
    },
    config_defaults={
        "num_key_value_heads": 8,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "router_jitter_noise": 0.01,
    },
    # transformers always chooses two experts.
    refused={"num_experts_per_tok": (1, 2)},
    moe_module="block_sparse_moe",
    tensors=(
        *common.WHOLE_MODEL,
        TensorRule("final_norm_bias", "model.norm.bias", ("hidden",), "norms"),
        TensorRule("lm_head_bias", "lm_head.bias", ("vocab",), "embeddings", "lm_head_bias"),
        common.INPUT_NORM,
        TensorRule("input_norm_bias", common.LAYER + "input_layernorm.bias", ("hidden",), "norms"),
        *common.QKV,
        *common.QKV_BIAS,
        common.OUT,
        common.OUT_BIAS,
        common.EXPERT_NORM,
        TensorRule(
            "expert_norm_bias", common.LAYER + "post_attention_layernorm.bias", ("hidden",), "norms"
        ),
        common.router(_MOE + "gate.weight"),
        *common.experts(_MOE + "experts.{expert}.", gate="w1", up="w3", down="w2"),
    ),
    fused=(*common.FUSED_EXPERTS, FusedRule(("router",), common.LAYER + "mlp.router.weight")),
    windows="all",
    norm="layer",
    rope_types=("default", "longrope"),
    routing=Routing("sparsemixer"),
    normalize_top_k=False,
    moe_returns_logits=True,
    genai_type="phimoe",
)
