"""Rotary frequencies, plain or stretched to longer contexts.

Legend: F rotary frequencies (half of the entries of a head that are rotated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError

RopeType = Literal["default", "yarn", "longrope"]

_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_STRETCHED = _ALWAYS | {"original_max_position_embeddings"}
_YARN = {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
_LONGROPE = {"short_factor", "short_mscale", "long_factor", "long_mscale"}

KEYS: dict[str, set[str]] = {
    "default": _ALWAYS,
    "yarn": _STRETCHED | _YARN | {"truncate"},
    "longrope": _STRETCHED | _LONGROPE,
}
"""Keys of a config's `rope_parameters` or `rope_scaling` that are understood, by type of rotation;
other keys stop the run."""


@dataclass(frozen=True)
class Yarn:
    """Parameters of YaRN (https://arxiv.org/abs/2309.00071), as in transformers.

    Attributes:
        factor: Factor that slow frequencies are divided by.
        original_positions: Number of positions of the model before stretching.
        beta_fast: Turns over the original positions above which a frequency is unchanged.
        beta_slow: Turns over the original positions below which it is divided by the full factor.
        truncate: True if the ramp between both limits begins and ends at whole frequency numbers.
        table_scale: Factor of cosine and sine.
        score_scale: Additional factor of the attention scores in DeepSeek's attention.
    """

    factor: float
    original_positions: int
    beta_fast: float
    beta_slow: float
    truncate: bool
    table_scale: float
    score_scale: float


@dataclass(frozen=True)
class LongRope:
    """Parameters of LongRoPE (https://arxiv.org/abs/2402.13753) up to the original context length.

    For longer contexts transformers uses other factors, which do not apply to keys that are cached
    already. Longer contexts are therefore refused.

    Attributes:
        short_factor_F: Divisor of each frequency.
        table_scale: Factor of cosine and sine.
    """

    short_factor_F: tuple[float, ...]
    table_scale: float


Stretch = Yarn | LongRope


def rope_facts(config: dict[str, Any]) -> dict[str, Any]:
    """Rotation parameters of a config, with the keys of transformers 5."""
    facts = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    facts["rope_type"] = facts.get("rope_type") or facts.pop("type", None) or "default"
    return {key: value for key, value in facts.items() if value is not None}


def read_stretch(
    config: dict[str, Any],
    model_type: str,
    supported: tuple[RopeType, ...],
    rotary_dim: int,
    max_positions: int,
) -> Stretch | None:
    """Stretching of rotary frequencies that a config specifies; None if there is none.

    Args:
        config: Content of `config.json`.
        model_type: Model type for error messages.
        supported: Rope types of the family.
        rotary_dim: Number of rotated entries of a head.
        max_positions: Largest number of positions of the model.

    Raises:
        CheckpointError: The type is not supported, or a key is unknown, missing or invalid.
    """
    facts = rope_facts(config)
    kind = facts["rope_type"]
    if kind not in supported:
        raise CheckpointError(
            f"config.json: rope_type {kind!r} is not supported for {model_type}; expected "
            f"{' or '.join(map(repr, supported))}"
        )
    unknown = sorted(facts.keys() - KEYS[kind])
    if unknown:
        raise CheckpointError(
            f"config.json: {unknown[0]} within rope_scaling or rope_parameters is unknown to "
            f"{model_type}"
        )
    if kind == "default":
        return None
    if kind == "longrope":
        return _read_longrope(facts, model_type, rotary_dim // 2, max_positions)
    return _read_yarn(facts, model_type)


def _read_longrope(
    facts: dict[str, Any], model_type: str, frequencies: int, max_positions: int
) -> LongRope:
    original = int(_number(facts, "original_max_position_embeddings", model_type))
    if max_positions > original:
        raise CheckpointError(
            f"config.json: this {model_type} has {max_positions} positions by longrope, which is "
            f"supported up to its original {original} alone; set max_position_embeddings to "
            f"{original} to use it up to there"
        )
    factors = facts.get("short_factor")
    if (
        not isinstance(factors, list)
        or len(factors) != frequencies
        or not all(isinstance(factor, int | float) and factor > 0 for factor in factors)
    ):
        raise CheckpointError(
            f"config.json: short_factor of longrope must be {frequencies} numbers for {model_type}"
        )
    scale = _number(facts, "short_mscale", model_type)
    return LongRope(tuple(float(factor) for factor in factors), scale)


def _read_yarn(facts: dict[str, Any], model_type: str) -> Yarn:
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


def frequencies(theta: float, rotary_dim: int, stretch: Stretch | None) -> NDArray[np.float32]:
    """Angle per position of each pair of entries, [F] float32, rounded as in transformers."""
    exponent_F = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    period_F = np.power(theta, exponent_F, dtype=np.float64).astype(np.float32)
    if isinstance(stretch, LongRope):
        period_F = period_F * np.array(stretch.short_factor_F, np.float32)
    fast_F = np.asarray(np.float32(1) / period_F, np.float32)
    if not isinstance(stretch, Yarn):
        return fast_F
    slow_F = np.float32(1) / (np.float32(stretch.factor) * period_F)
    kept_F = np.float32(1) - _ramp(theta, rotary_dim, stretch)
    return np.asarray(slow_F * (np.float32(1) - kept_F) + fast_F * kept_F, np.float32)


def _ramp(theta: float, rotary_dim: int, yarn: Yarn) -> NDArray[np.float32]:
    """Ramp [F] of YaRN: 0 for unchanged frequencies, 1 for those divided by the full factor."""

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
            f"config.json: {key} within rope_scaling is {value!r}, expected a number for "
            f"{model_type}"
        )
    return float(value)
