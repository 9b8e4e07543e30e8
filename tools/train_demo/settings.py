"""Every number of the demo model's training in one place; written to `training.json` as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from moe_export.demo.tasks import KINDS

BOS_ID = EOS_ID = 0
PAD_ID = 1


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
