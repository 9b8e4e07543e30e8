"""Every number of the demo model's training in one place; written to `training.json` as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from moe_export.demo.tasks import KINDS

BOS_ID = EOS_ID = 0
PAD_ID = 1

# Keys and names as transformers 4 and 5 both read them.
MODEL_CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01,
    "output_router_logits": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "use_cache": True,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "dtype": "float16",
}


@dataclass(frozen=True)
class Settings:
    """Batch, schedule and optimizer settings; `mix` holds each kind's share of the tokens."""

    steps: int = 2600
    seed: int = 7
    threads: int = 2
    rows: int = 16
    row_tokens: int = 192
    mix: Mapping[str, float] = field(
        # Many short bare sums are what teaches addition; word problems alone do not.
        default_factory=lambda: dict(zip(KINDS, (0.34, 0.27, 0.24, 0.07, 0.08), strict=True))
    )
    prompt_weight: float = 0.25  # loss weight of a prompt token; an answer token counts 1
    muon_learning_rate: float = 0.02
    muon_momentum: float = 0.95
    muon_weight_decay: float = 0.1
    adam_learning_rate: float = 3e-3
    adam_weight_decay: float = 0.05
    warmup_steps: int = 40
    constant_fraction: float = 0.4
    final_learning_rate_factor: float = 0.01
    balance_loss_weight: float = 0.01
    label_smoothing: float = 0.1
    smoothed_fraction: float = 0.1  # last part of the steps
    tokenizer_documents: int = 25_000
    # Held-out items per kind behind scores.json.
    test_counts: Mapping[str, int] = field(
        default_factory=lambda: dict(zip(KINDS, (400, 400, 1100, 300, 100), strict=True))
    )

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, a constant part, then a linear fall."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        remaining = (1 - step / self.steps) / (1 - self.constant_fraction)
        return warmup * min(1.0, max(self.final_learning_rate_factor, remaining))

    def label_smoothing_at(self, step: int) -> float:
        """Label smoothing of one step: none until the last part of the training."""
        return self.label_smoothing if step >= (1 - self.smoothed_fraction) * self.steps else 0.0


def smoke(settings: Settings) -> Settings:
    """Thirty small steps: enough to see that the loss falls."""
    return replace(
        settings,
        steps=30,
        rows=4,
        warmup_steps=5,
        tokenizer_documents=2_500,
        test_counts=dict.fromkeys(KINDS, 8),
    )
