"""One row for each family: a tiny random model, its variants, and the configs that are refused.

The tests in `tests/family` run over this table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 258,
}

EXPERTS, WIDTH = 6, 24
"""Number and width of the experts in every layer that has experts."""

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "original_max_position_embeddings": 128,
    "short_factor": [1.0, 1.02, 1.05, 1.1, 1.3, 1.9, 3.0, 5.5],
    "long_factor": [9.0] * 8,
    "short_mscale": 1.2,
    "long_mscale": 1.5,
}
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 4.0}


@dataclass(frozen=True)
class FamilyRow:
    """A family and what its tests try.

    Attributes:
        config: Config of a model with three layers and `EXPERTS` experts of `WIDTH`, two chosen.
        variants: Config keys to replace, one set at a time; each must equal transformers.
        refused: Config keys to replace, and a word of the error; each must be refused.
        dense_layers: Numbers of the layers of `config` without experts.
        oldest_transformers: Oldest major version of transformers that knows the family.
        model_type: `model_type` of the config.
    """

    config: dict[str, Any]
    variants: tuple[dict[str, Any], ...]
    refused: tuple[tuple[dict[str, Any], str], ...]
    dense_layers: tuple[int, ...] = ()
    oldest_transformers: int = 4
    model_type: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "model_type", self.config["model_type"])

    def widths(self, *pattern: int) -> tuple[tuple[int, ...], ...]:
        """Widths of all experts, repeating the pattern; empty for layers without experts."""
        numbers = iter(range(EXPERTS * 3))
        return tuple(
            ()
            if layer in self.dense_layers
            else tuple(pattern[next(numbers) % len(pattern)] for _ in range(EXPERTS))
            for layer in range(3)
        )


QWEN2_MOE = FamilyRow(
    config=COMMON
    | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "shared_expert_intermediate_size": 40,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "mlp_only_layers": [1],
    },
    variants=(
        {"mlp_only_layers": [], "decoder_sparse_step": 2},
        {"mlp_only_layers": [0], "norm_topk_prob": True, "tie_word_embeddings": True},
    ),
    refused=(
        ({"use_sliding_window": True, "sliding_window": 16}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types is"),
        ({"layer_types": 3}, "layer_types is 3, expected a list"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_only_layers": [0, 1, 2]}, "no layer"),
        ({"rope_scaling": LINEAR}, "rope_type 'linear'"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"num_attention_heads": 8}, "multiple of 16"),
    ),
    dense_layers=(1,),
)

QWEN3_MOE = FamilyRow(
    config=COMMON
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 32,
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    },
    variants=(
        {"norm_topk_prob": False, "num_key_value_heads": 4, "tie_word_embeddings": True},
        {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 16},
        {
            "mlp_only_layers": [0],
            "num_experts_per_tok": 1,
            "use_sliding_window": True,
            "sliding_window": 6,
        },
        {"decoder_sparse_step": 2, "rope_scaling": YARN},
    ),
    refused=(
        ({"rope_scaling": LINEAR}, "rope_type 'linear'"),
        ({"num_local_experts": EXPERTS + 1}, "the same size"),
    ),
)

OLMOE = FamilyRow(
    config=COMMON
    | {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "intermediate_size": WIDTH,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    },
    variants=(
        {"num_key_value_heads": None, "norm_topk_prob": True},
        {
            "clip_qkv": 0.5,
            "attention_bias": True,
            "rope_scaling": YARN | {"beta_fast": 1.5, "beta_slow": 0.05},
        },
    ),
    refused=(({"rope_scaling": LINEAR}, "rope_type 'linear'"),),
)

MIXTRAL = FamilyRow(
    config=COMMON
    | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "intermediate_size": WIDTH,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
    },
    variants=(
        {"num_experts_per_tok": 3, "sliding_window": 128, "tie_word_embeddings": True},
        {"num_key_value_heads": 4, "head_dim": 32, "sliding_window": 5},
    ),
    refused=(({"sliding_window": -1}, "window"),),
)

PHIMOE = FamilyRow(
    config=COMMON
    | {
        "architectures": ["PhimoeForCausalLM"],
        "model_type": "phimoe",
        "intermediate_size": WIDTH,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": True,
        "lm_head_bias": True,
        "router_jitter_noise": 0.2,
    },
    variants=(
        {"attention_bias": False, "lm_head_bias": False, "router_jitter_noise": 0.01},
        {"tie_word_embeddings": True, "router_jitter_noise": 1.5, "sliding_window": 7},
        {"rope_scaling": LONGROPE},
    ),
    refused=(
        ({"num_experts_per_tok": 3}, "num_experts_per_tok"),
        ({"rope_scaling": YARN}, "rope_type 'yarn'"),
        ({"rope_scaling": LONGROPE, "max_position_embeddings": 256}, "max_position_embeddings"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0] * 7}}, "short_factor"),
    ),
)

DEEPSEEK_V2 = FamilyRow(
    config=COMMON
    | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "num_key_value_heads": 4,
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7,
        "topk_method": "greedy",
        "q_lora_rank": None,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 12,
        "rms_norm_eps": 1e-3,  # that of the latent norms stays 1e-6
        "rope_theta": 10000.0,
    },
    variants=(
        {"q_lora_rank": 24, "first_k_dense_replace": 2, "routed_scaling_factor": 1.0},
        {
            "v_head_dim": 32,
            "qk_nope_head_dim": 8,
            "n_shared_experts": 1,
            "tie_word_embeddings": True,
        },
        {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 1},
        {"rope_scaling": YARN | {"mscale": 1.5, "mscale_all_dim": 0.7, "truncate": False}},
    ),
    refused=(
        ({"topk_method": "noaux_tc"}, "topk_method"),
        ({"n_group": 2}, "topk_method"),
        ({"topk_method": None}, "topk_method is null"),
        ({"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 1}, "4 groups"),
        ({"kv_lora_rank": 40}, "multiple of 16"),
        ({"qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "kv_lora_rank": 40}, "of them rotated"),
        ({"qk_rope_head_dim": 48}, "not smaller"),
        ({"norm_topk_prob": True}, "norm_topk_prob"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": YARN | {"low_freq_factor": 1.0}}, "low_freq_factor"),
        ({"rope_scaling": LINEAR}, "rope_type 'linear'"),
    ),
    dense_layers=(0,),
)

DEEPSEEK_V3 = FamilyRow(
    config=DEEPSEEK_V2.config
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "n_group": 1,
        "topk_group": 1,
        "rope_interleave": True,
        "num_nextn_predict_layers": 1,
    },
    variants=(
        {"q_lora_rank": 24, "first_k_dense_replace": 2, "norm_topk_prob": False},
        {"n_group": 3, "topk_group": 2, "n_shared_experts": 1, "tie_word_embeddings": True},
        {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    refused=(
        ({"topk_method": "greedy"}, "topk_method"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"n_group": 6, "topk_group": 2}, "best two"),
        ({"n_group": 1, "topk_group": 4}, "4 of 1 groups"),
        ({"n_group": 1, "topk_group": 0}, "topk_group is 0"),
        ({"q_lora_rank": 0}, "q_lora_rank is 0"),
        ({"n_group": 4, "topk_group": 2}, "4 groups"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
    ),
    dense_layers=(0,),
)

GLM4_MOE_LITE = FamilyRow(
    config=DEEPSEEK_V3.config
    | {"architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite"},
    variants=(
        {"mlp_layer_types": ["sparse", "dense", "sparse"], "q_lora_rank": 24},
        {"n_group": 2, "topk_group": 1, "norm_topk_prob": False, "v_head_dim": 32},
    ),
    refused=(
        ({"first_k_dense_replace": 2}, "first_k_dense_replace"),
        ({"mlp_layer_types": ["dense"] * 3}, "mlp_layer_types"),
        ({"mlp_layer_types": ["sparse", "dense"]}, "mlp_layer_types"),
        ({"rope_scaling": LINEAR}, "rope_type 'linear'"),
    ),
    dense_layers=(0,),
    oldest_transformers=5,
)

GLM4_MOE = FamilyRow(
    config=COMMON
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "model_type": "glm4_moe",
        "head_dim": 32,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "use_qk_norm": False,
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    variants=(
        {"use_qk_norm": True, "attention_bias": False, "routed_scaling_factor": 1.0},
        {"partial_rotary_factor": 1.0, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
        {"first_k_dense_replace": 0, "tie_word_embeddings": True, "rope_scaling": YARN},
    ),
    refused=(
        ({"partial_rotary_factor": 0.25}, "multiple of 16"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"scoring_func": "softmax"}, "scoring_func"),
    ),
    dense_layers=(0,),
)

DOTS1 = FamilyRow(
    config=COMMON
    | {
        "architectures": ["Dots1ForCausalLM"],
        "model_type": "dots1",
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "n_routed_experts": EXPERTS,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.7,
        "norm_topk_prob": True,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    variants=(
        {"attention_bias": True, "norm_topk_prob": False, "head_dim": 32},
        {
            "sliding_window": 5,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "n_group": 3,
            "topk_group": 2,
        },
    ),
    refused=(
        ({"sliding_window": 5}, "layer_types is"),
        ({"moe_layer_freq": 2}, "moe_layer_freq"),
        ({"scoring_func": "softmax"}, "scoring_func"),
    ),
    dense_layers=(0,),
)

SOLAR_OPEN = FamilyRow(
    config={
        key: value
        for key, value in DOTS1.config.items()
        if key not in ("first_k_dense_replace", "intermediate_size", "sliding_window")
    }
    | {"architectures": ["SolarOpenForCausalLM"], "model_type": "solar_open", "head_dim": 32},
    variants=(
        {"attention_bias": True, "norm_topk_prob": False, "n_shared_experts": 1},
        {"n_group": 3, "topk_group": 2, "tie_word_embeddings": True, "rope_scaling": YARN},
    ),
    refused=(
        ({"first_k_dense_replace": 1}, "first_k_dense_replace"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"sliding_window": 5}, "sliding_window"),
    ),
    oldest_transformers=5,
)

EXAONE_MOE = FamilyRow(
    config={
        key: value
        for key, value in DOTS1.config.items()
        if key not in ("n_routed_experts", "n_shared_experts")
    }
    | {
        "architectures": ["ExaoneMoeForCausalLM"],
        "model_type": "exaone_moe",
        "num_experts": EXPERTS,
        "num_shared_experts": 1,
        "rope_theta": 1e4,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
    variants=(
        {"layer_types": ["sliding_attention"] * 3, "norm_topk_prob": False, "head_dim": 32},
        {
            "sliding_window": 256,  # longer than the context, and still no positions in two layers
            "mlp_layer_types": ["sparse", "dense", "sparse"],
            "num_shared_experts": 2,
            "n_group": 3,
            "topk_group": 2,
        },
    ),
    refused=(
        ({"layer_types": None}, "layer_types is"),
        ({"sliding_window": None}, "sliding_window is"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types is"),
        ({"scoring_func": "softmax"}, "scoring_func"),
    ),
    dense_layers=(0,),
    oldest_transformers=5,
)

LFM2_MOE = FamilyRow(
    config=COMMON
    | {
        "architectures": ["Lfm2MoeForCausalLM"],
        "model_type": "lfm2_moe",
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention", "conv"],
        "conv_L_cache": 3,
        "conv_bias": False,
        "use_expert_bias": True,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    variants=(
        {
            "layer_types": ["full_attention", "conv", "conv"],
            "conv_L_cache": 5,
            "routed_scaling_factor": 1.7,
            "tie_embedding": False,
        },
        {
            "num_dense_layers": 2,
            "norm_topk_prob": False,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    refused=(
        ({"layer_types": ["conv", "full_attention"]}, "layer_types"),
        ({"layer_types": ["conv", "full_attention", "sliding_attention"]}, "layer_types"),
        ({"conv_bias": True}, "conv_bias"),
        ({"use_expert_bias": False}, "use_expert_bias"),
        ({"tie_embedding": 1}, "tie_embedding"),
        ({"conv_L_cache": 1}, "conv_L_cache"),
    ),
    dense_layers=(0,),
    oldest_transformers=5,
)

QWEN3_NEXT = FamilyRow(
    config=COMMON
    | {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_key_value_heads": 1,
        "head_dim": 64,
        "partial_rotary_factor": 0.25,
        "intermediate_size": 56,
        "moe_intermediate_size": WIDTH,
        "shared_expert_intermediate_size": 40,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        # 1e-6 would amplify the rounding of a memory that holds one token.
        "rms_norm_eps": 1e-3,
        "rope_theta": 1e6,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "full_attention_interval": 2,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 24,
        "linear_conv_kernel_dim": 4,
    },
    variants=(
        {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "linear_num_value_heads": 2,
            "linear_conv_kernel_dim": 3,
            "mlp_only_layers": [1],
        },
        {
            "norm_topk_prob": False,
            "tie_word_embeddings": True,
            "head_dim": 32,
            "partial_rotary_factor": 0.5,
        },
    ),
    refused=(
        ({"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ({"layer_types": ["conv", "full_attention", "linear_attention"]}, "layer_types"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": LINEAR}, "rope_type 'linear'"),
    ),
)

QWEN3_5_MOE_TEXT = FamilyRow(
    config={
        key: value
        for key, value in QWEN3_NEXT.config.items()
        if key not in ("decoder_sparse_step", "mlp_only_layers", "intermediate_size")
    }
    | {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
    },
    variants=(
        {
            "layer_types": ["full_attention", "linear_attention", "linear_attention"],
            "linear_num_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e5,
                "partial_rotary_factor": 0.5,
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
            },
        },
    ),
    refused=(
        ({"linear_num_value_heads": 3}, "linear_num_value_heads"),
        ({"attention_bias": True}, "attention_bias"),
    ),
    oldest_transformers=5,
)

ROWS = tuple(row for row in tuple(globals().values()) if isinstance(row, FamilyRow))
