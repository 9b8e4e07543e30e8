"""Qwen3-Next: Qwen3-Next-80B-A3B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, TensorRule

_MLP = common.LAYER + "mlp."
_DELTA = common.LAYER + "linear_attn."

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    config_keys=common.CONFIG_KEYS | common.QWEN_EXPERT_KEYS | common.DELTA_KEYS,
    config_defaults=common.DELTA_DEFAULTS,
    refused={"attention_bias": (False,)},
    moe_module="mlp",
    tensors=(
        *common.WHOLE_MODEL[::2],
        *common.from_one(common.WHOLE_MODEL[1], common.INPUT_NORM),
        *common.of_mixer("attention", *common.GATED_ATTENTION),
        *common.of_mixer(
            "delta_net",
            TensorRule(
                "delta_in", _DELTA + "in_proj_qkvz.weight", ("delta_in", "hidden"), "attention"
            ),
            TensorRule(
                "delta_gates", _DELTA + "in_proj_ba.weight", ("delta_gates", "hidden"), "attention"
            ),
            *common.DELTA_NET,
        ),
        *common.from_one(common.EXPERT_NORM),
        common.router(_MLP + "gate.weight"),
        *common.experts(_MLP + "experts.{expert}."),
        *common.shared_expert(_MLP + "shared_expert."),
        common.shared_router(_MLP + "shared_expert_gate.weight"),
        *common.dense_mlp(_MLP),
    ),
    fused=common.FUSED_EXPERTS,
    dense_layers=("decoder_sparse_step", "mlp_only_layers"),
    mixers={"linear_attention": "delta_net", "full_attention": "attention"},
    gates_attention=True,
    qk_norm="head",
    ahead_prefix="mtp.",
)
