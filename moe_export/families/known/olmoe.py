"""OLMoE: OLMoE-1B-7B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, TensorRule

_MLP = common.LAYER + "mlp."

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {"num_experts": "num_experts", "width": "intermediate_size", "clip_qkv": "clip_qkv"},
    config_defaults={"rope_theta": 10000.0, "rms_norm_eps": 1e-5},
    refused={},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        *common.QKV_BIAS,
        TensorRule("q_norm", common.ATTENTION + "q_norm.weight", ("q",), "norms"),
        TensorRule("k_norm", common.ATTENTION + "k_norm.weight", ("kv",), "norms"),
        common.OUT,
        common.OUT_BIAS,
        common.EXPERT_NORM,
        common.router(_MLP + "gate.weight"),
        *common.experts(_MLP + "experts.{expert}."),
    ),
    fused=common.FUSED_EXPERTS,
    qk_norm="all",
    moe_returns_logits=True,
    genai_type="olmo",
)
