"""DeepSeek-V2: DeepSeek-V2, DeepSeek-V2-Lite, DeepSeek-Coder-V2."""

from __future__ import annotations

from moe_export.families import common
from moe_export.families.base import Family, TensorRule

_ATTENTION = common.ATTENTION
_MLP = common.LAYER + "mlp."

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    config_keys=common.CONFIG_KEYS
    | {
        "num_experts": "n_routed_experts",
        "width": "moe_intermediate_size",
        "num_shared_experts": "n_shared_experts",
        "dense_width": "intermediate_size",
        "first_k": "first_k_dense_replace",
        "routing_scale": "routed_scaling_factor",
        "groups": "n_group",
        "top_groups": "topk_group",
        "q_latent": "q_lora_rank",
        "kv_latent": "kv_lora_rank",
        "rope_dim": "qk_rope_head_dim",
        "nope_dim": "qk_nope_head_dim",
        "value_dim": "v_head_dim",
    },
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
        TensorRule(
            "q", _ATTENTION + "q_proj.weight", ("q", "hidden"), "attention", "has_whole_queries"
        ),
        TensorRule(
            "q_latent",
            _ATTENTION + "q_a_proj.weight",
            ("q_latent", "hidden"),
            "attention",
            "has_query_latent",
        ),
        TensorRule(
            "q_latent_norm",
            _ATTENTION + "q_a_layernorm.weight",
            ("q_latent",),
            "norms",
            "has_query_latent",
        ),
        TensorRule(
            "q_expand",
            _ATTENTION + "q_b_proj.weight",
            ("q", "q_latent"),
            "attention",
            "has_query_latent",
        ),
        TensorRule(
            "kv_latent",
            _ATTENTION + "kv_a_proj_with_mqa.weight",
            ("kv_latent_and_rope", "hidden"),
            "attention",
        ),
        TensorRule("kv_latent_norm", _ATTENTION + "kv_a_layernorm.weight", ("kv_latent",), "norms"),
        TensorRule(
            "kv_expand",
            _ATTENTION + "kv_b_proj.weight",
            ("kv_expanded", "kv_latent"),
            "attention",
        ),
        TensorRule("o", _ATTENTION + "o_proj.weight", ("hidden", "values"), "attention"),
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
