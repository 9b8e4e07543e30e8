"""LFM2-MoE: LFM2-8B-A1B."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, FusedRule, TensorRule
from moe_export.families.features import Routing

_CONV = common.LAYER + "conv."
_FEED = common.LAYER + "feed_forward."

FAMILY = Family(
    model_type="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {
        "norm_epsilon": "norm_eps",
        "num_experts": "num_experts",
        "width": "moe_intermediate_size",
        "dense_width": "intermediate_size",
        "first_k": "num_dense_layers",
        "routing_scale": "routed_scaling_factor",
        "convolution_taps": "conv_L_cache",
    },
    config_defaults={
        "num_key_value_heads": 8,
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
        "norm_topk_prob": True,
        "num_dense_layers": 2,
        "conv_L_cache": 3,
        "tie_word_embeddings": True,
    },
    refused={
        "conv_bias": (False,),
        "use_expert_bias": (True,),
    },
    # An older name comes first, because transformers lets it decide.
    tie_keys=("tie_embedding", "tie_word_embeddings"),
    moe_module="feed_forward",
    tensors=(
        TensorRule("embedding", "model.embed_tokens.weight", ("vocab", "hidden"), "embeddings"),
        TensorRule("final_norm", "model.embedding_norm.weight", ("hidden",), "norms"),
        TensorRule("lm_head", "lm_head.weight", ("vocab", "hidden"), "embeddings", "has_lm_head"),
        TensorRule("input_norm", common.LAYER + "operator_norm.weight", ("hidden",), "norms"),
        *common.of_mixer(
            "attention",
            *common.QKV,
            TensorRule("q_norm", common.ATTENTION + "q_layernorm.weight", ("head",), "norms"),
            TensorRule("k_norm", common.ATTENTION + "k_layernorm.weight", ("head",), "norms"),
            TensorRule("o", common.ATTENTION + "out_proj.weight", ("hidden", "q"), "attention"),
        ),
        *common.of_mixer(
            "short_convolution",
            TensorRule("conv_in", _CONV + "in_proj.weight", ("conv_in", "hidden"), "attention"),
            TensorRule("conv", _CONV + "conv.weight", ("hidden", "one", "taps"), "attention"),
            TensorRule("conv_out", _CONV + "out_proj.weight", ("hidden", "hidden"), "attention"),
        ),
        TensorRule("expert_norm", common.LAYER + "ffn_norm.weight", ("hidden",), "norms"),
        common.router(_FEED + "gate.weight"),
        common.choice_bias(_FEED + "expert_bias"),
        *common.experts(_FEED + "experts.{expert}.", gate="w1", up="w3", down="w2"),
        *common.dense_mlp(_FEED, gate="w1", up="w3", down="w2"),
    ),
    fused=(
        FusedRule(("gate", "up"), _FEED + "experts.gate_up_proj"),
        FusedRule(("down",), _FEED + "experts.down_proj"),
    ),
    dense_layers=("first_k",),
    mixers={"conv": "short_convolution", "full_attention": "attention"},
    qk_norm="head",
    routing=Routing("sigmoid", has_choice_bias=True, group_score="best_two", total_epsilon=1e-6),
    genai_type="lfm2_moe",
)
