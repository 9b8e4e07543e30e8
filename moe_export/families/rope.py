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
from moe_export.families.schema import POSITIONS, POSITIVE, real, shown

RopeType = Literal["default", "yarn", "longrope"]

_ALWAYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_STRETCHED = _ALWAYS | {"original_max_position_embeddings"}
_YARN = {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
_LONGROPE = {"short_factor", "short_mscale", "long_factor", "long_mscale"}

KEYS: dict[str, set[str]] = {
    # In a text all axes of multimodal rotation (mrope) have the same positions.
    "default": _ALWAYS | {"mrope_section", "mrope_interleaved"},
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
    """Rotation parameters of a config, with the keys of transformers 5.

    Raises:
        CheckpointError: They are no JSON object.
    """
    for key in ("rope_parameters", "rope_scaling"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise CheckpointError(
                f"config.json: {key} is {shown(config[key])}, expected a JSON object with rope_type"
            )
    facts = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    names = (facts.get("rope_type"), facts.pop("type", None), "default")
    facts["rope_type"] = next(name for name in names if name is not None)
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
            f"config.json: rope_type {shown(kind)} is not supported for {model_type}; expected "
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
    original = _original(facts, model_type)
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
        or not all(POSITIVE.holds(factor) for factor in factors)
    ):
        raise CheckpointError(
            f"config.json: short_factor of longrope must be {frequencies} numbers for {model_type}"
        )
    scale = real(facts, "short_mscale", None, _within(model_type))
    return LongRope(tuple(float(factor) for factor in factors), scale)


def _read_yarn(facts: dict[str, Any], model_type: str) -> Yarn:
    where = _within(model_type)
    factor = real(facts, "factor", None, where)
    scale, scale_all = (facts.get(key) or 0 for key in ("mscale", "mscale_all_dim"))
    if scale:
        scale = real(facts, "mscale", None, where)
    if scale_all:
        scale_all = real(facts, "mscale_all_dim", None, where)
    table_scale = _mscale(factor, 1.0)
    if scale and scale_all:
        table_scale = _mscale(factor, scale) / _mscale(factor, scale_all)
    truncate = facts.get("truncate", True)
    if not isinstance(truncate, bool):
        raise CheckpointError(
            f"config.json: truncate within {where} is {shown(truncate)}, expected true or false"
        )
    return Yarn(
        factor=factor,
        original_positions=_original(facts, model_type),
        beta_fast=real(facts, "beta_fast", 32, where),
        beta_slow=real(facts, "beta_slow", 1, where),
        truncate=truncate,
        table_scale=real(facts, "attention_factor", table_scale, where),
        score_scale=_mscale(factor, scale_all) ** 2,
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


def _original(facts: dict[str, Any], model_type: str) -> int:
    """Number of positions of the model before stretching."""
    value = facts.get("original_max_position_embeddings")
    if not POSITIONS.holds(value):
        raise CheckpointError(
            f"config.json: original_max_position_embeddings within {_within(model_type)} is "
            f"{shown(value)}, expected {POSITIONS}"
        )
    assert isinstance(value, int)
    return value


def _within(model_type: str) -> str:
    return f"rope_scaling of this {model_type}"
