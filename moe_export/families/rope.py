"""Rotary frequencies, as they are and stretched to longer contexts by YaRN.

Legend: F rotary frequencies (half of the entries of a head that are rotated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError

KEYS = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor"}
    | {"original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
    | {"truncate"}
)
"""What is understood of a config's `rope_parameters` or `rope_scaling`; the rest stops the run."""


@dataclass(frozen=True)
class Yarn:
    """How YaRN (https://arxiv.org/abs/2309.00071) stretches frequencies, as in transformers.

    Attributes:
        factor: by how much slow frequencies are slowed down.
        original_positions: of the model before it was stretched.
        beta_fast: a frequency with more turns than this over those positions stays as it is.
        beta_slow: one with fewer turns is slowed down by all of the factor.
        truncate: whether the frequencies between are counted from whole ones.
        table_scale: what cosine and sine are multiplied with.
        score_scale: what DeepSeek's attention multiplies its scores with besides.
    """

    factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    table_scale: float
    score_scale: float


def rope_facts(config: dict[str, Any]) -> dict[str, Any]:
    """What a config says of rotation, in the words of transformers 5 whatever wrote it."""
    facts = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    facts["rope_type"] = facts.get("rope_type") or facts.pop("type", None) or "default"
    return {key: value for key, value in facts.items() if value is not None}


def read_yarn(config: dict[str, Any], model_type: str, supported: tuple[str, ...]) -> Yarn | None:
    """The stretching that a config asks for, if any.

    Args:
        config: of the model.
        model_type: for errors.
        supported: rope types of the family.

    Raises:
        CheckpointError: another type, or keys that are not understood or missing.
    """
    facts = rope_facts(config)
    kind = facts["rope_type"]
    if kind not in supported:
        raise CheckpointError(
            f"config.json: rope_type {kind!r} is not supported for {model_type}; expected "
            f"{' or '.join(map(repr, supported))}"
        )
    unknown = sorted(facts.keys() - KEYS)
    if unknown:
        raise CheckpointError(
            f"config.json: {unknown[0]} within rope_scaling or rope_parameters is unknown to "
            f"{model_type}"
        )
    if kind == "default":
        return None
    factor = _number(facts, "factor", model_type)
    both = facts.get("mscale") and facts.get("mscale_all_dim")
    if both:
        table_scale = _mscale(factor, facts["mscale"]) / _mscale(factor, facts["mscale_all_dim"])
    else:
        table_scale = _mscale(factor, 1.0)
    score_scale = _mscale(factor, facts.get("mscale_all_dim") or 0.0) ** 2
    return Yarn(
        factor=factor,
        original_positions=int(_number(facts, "original_max_position_embeddings", model_type)),
        beta_fast=float(facts.get("beta_fast") or 32),
        beta_slow=float(facts.get("beta_slow") or 1),
        truncate=bool(facts.get("truncate", True)),
        table_scale=float(facts.get("attention_factor", table_scale)),
        score_scale=score_scale,
    )


def frequencies(theta: float, rotary_dim: int, yarn: Yarn | None) -> NDArray[np.float32]:
    """Angle per position of each pair of entries, [F], rounded where transformers does so."""
    exponent_F = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    period_F = np.power(theta, exponent_F, dtype=np.float64).astype(np.float32)
    fast_F = np.asarray(np.float32(1) / period_F, np.float32)
    if yarn is None:
        return fast_F
    slow_F = np.float32(1) / (np.float32(yarn.factor) * period_F)
    kept_F = np.float32(1) - _ramp(theta, rotary_dim, yarn)
    return np.asarray(slow_F * (np.float32(1) - kept_F) + fast_F * kept_F, np.float32)


def _ramp(theta: float, rotary_dim: int, yarn: Yarn) -> NDArray[np.float32]:
    """0 where a frequency stays as it is, 1 where it is slowed down by all of the factor, [F]."""

    def place(turns: float) -> float:
        ratio = yarn.original_positions / (turns * 2 * math.pi)
        return rotary_dim * math.log(ratio) / (2 * math.log(theta))

    low, high = place(yarn.beta_fast), place(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    if low == high:
        high += 0.001
    number_F = np.arange(rotary_dim // 2, dtype=np.float32)
    ramp_F: NDArray[np.float32] = np.clip((number_F - low) / (high - low), 0, 1)
    return ramp_F.astype(np.float32)


def _mscale(factor: float, scale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _number(facts: dict[str, Any], key: str, model_type: str) -> float:
    value = facts.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(
            f"config.json: {key} of YaRN is {value!r}, expected a number for {model_type}"
        )
    return float(value)
