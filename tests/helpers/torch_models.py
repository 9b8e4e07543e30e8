"""Tokens, models and tolerances of tests in torch; `moe_export.testing.tiny` has checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2MoeForCausalLM

UNEQUAL = ((0, 1, 5, 24, 7, 3), (24, 0, 2, 1, 9, 24), (8, 24, 3, 0, 1, 13))

# A dot product of n float32 terms in another order differs by about sqrt(n) * 2**-24 of its size;
# three layers of a few such, n <= 128, stay below 30 of them.
ROUNDING = 30 * 128**0.5 * 2.0**-24


def some_tokens(*shape: int) -> torch.Tensor:
    """Random token ids from a fixed seed."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))


def stock_model(directory: Path) -> Qwen2MoeForCausalLM:
    """Model of a stock checkpoint, loaded by transformers."""
    return Qwen2MoeForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    return float((actual - expected).abs().max() / expected.abs().max())
