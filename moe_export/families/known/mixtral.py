"""Mixtral: Mixtral-8x7B, Mixtral-8x22B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, FusedRule

_MOE = common.LAYER + "block_sparse_moe."

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {"num_experts": "num_local_experts", "width": "intermediate_size"},
    config_defaults={"num_key_value_heads": 8, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    refused={"attention_bias": (False,)},
    moe_module="block_sparse_moe",
    tensors=(
        *common.WHOLE_MODEL,
        common.INPUT_NORM,
        *common.QKV,
        common.OUT,
        common.EXPERT_NORM,
        common.router(_MOE + "gate.weight"),
        *common.experts(_MOE + "experts.{expert}.", gate="w1", up="w3", down="w2"),
    ),
    fused=(*common.FUSED_EXPERTS, FusedRule(("router",), common.LAYER + "mlp.gate.weight")),
    windows="all",
    normalize_top_k=True,
    moe_returns_logits=True,
    genai_type="mistral",
)
