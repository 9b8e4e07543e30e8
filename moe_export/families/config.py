"""Reading the sizes and choices of a model from its `config.json`.

Every variation of a model is either supported here or stops the run by name.
"""

from __future__ import annotations

from typing import Any

from moe_export.errors import CheckpointError
from moe_export.families.base import (
    PRUNED_PREFIX,
    SHARED_WIDTHS_KEY,
    WIDTHS_KEY,
    Family,
    ModelSpec,
)
from moe_export.families.choices import ExpertGroups, LatentAttention
from moe_export.families.rope import read_stretch, rope_facts
from moe_export.quantization import read_quantization

REFUSED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "partial_rotary_factor": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "router_logit_softcapping": (),
}
"""Supported values of config keys of every family."""

GROUP_LIMITED = "group_limited_greedy"
"""DeepSeek's word for routing by groups of experts."""

HEAD_UNIT = 16
"""Unit of head sizes: GroupQueryAttention of ONNX Runtime (seen in 1.32) refuses other sizes."""


class _Config:
    """The config of a model with the defaults of its family, and errors that name the key."""

    def __init__(self, family: Family, config: dict[str, Any]) -> None:
        self.family = family
        facts = family.config_defaults | config
        rope = rope_facts(config)
        # transformers 5 writes these keys within another, which wins if both are there.
        facts |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        self.values = {key: value for key, value in facts.items() if value is not None}

    def check_refused(self) -> None:
        """Stops at a value that is not supported."""
        for key, allowed in (REFUSED | self.family.refused).items():
            if key in self.values and self.values[key] not in allowed:
                expected = " or ".join(map(repr, allowed)) if allowed else "no such key"
                raise CheckpointError(
                    f"config.json: {key} is {self.values[key]!r}, which is not supported for "
                    f"{self.family.model_type}; expected {expected}"
                )

    def knows(self, name: str) -> bool:
        """True if the family has such a size."""
        return name in self.family.config_keys

    def number(self, name: str) -> Any:
        """A size, by our name for it."""
        named = self.family.config_keys[name]
        keys = (named,) if isinstance(named, str) else named
        given = {key: self.values[key] for key in keys if key in self.values}
        value = next(iter(given.values()), None)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise CheckpointError(
                f"config.json: {' or '.join(keys)} is {value!r}, expected a number for "
                f"{self.family.model_type}"
            )
        if any(other != value for other in given.values()):
            raise CheckpointError(
                f"config.json: {' and '.join(f'{k} {v}' for k, v in given.items())} are names of "
                f"the same size for {self.family.model_type}; remove the wrong one"
            )
        return value

    def number_or(self, name: str, default: Any) -> Any:
        """A size, or the default if the config or the family has none."""
        named = self.family.config_keys.get(name, ())
        keys = (named,) if isinstance(named, str) else named
        return self.number(name) if any(key in self.values for key in keys) else default

    def flag(self, key: str) -> bool:
        """True if a key is there and true."""
        return bool(self.values.get(key, False))


def read_spec(family: Family, config: dict[str, Any]) -> ModelSpec:
    """Reads the sizes of a model from its config, pruned or not.

    Raises:
        CheckpointError: a key is missing or of the wrong kind, or asks for something unsupported.
    """
    facts = _Config(family, config)
    facts.check_refused()
    number = facts.number
    hidden_size, num_heads = number("hidden_size"), number("num_heads")
    latent = _read_latent(facts)
    if latent is not None:
        head_dim, num_kv_heads = latent.rope_dim + latent.nope_dim, num_heads
    else:
        head_dim = facts.values.get("head_dim") or hidden_size // num_heads
        num_kv_heads = facts.number_or("num_kv_heads", num_heads)
    _check_window(facts)
    rotary_dim = head_dim if latent is None else latent.rope_dim
    _check_heads(facts, head_dim, rotary_dim)
    widths = _read_widths(facts, config)
    has_dense_layers = any(not layer for layer in widths)
    normalize = family.normalize_top_k
    return ModelSpec(
        family=family,
        hidden_size=hidden_size,
        num_layers=number("num_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=number("vocab_size"),
        max_positions=number("max_positions"),
        num_experts=number("num_experts"),
        top_k=number("top_k"),
        widths=widths,
        shared_widths=_read_shared_widths(facts, config, widths),
        dense_width=number("dense_width") if has_dense_layers else 0,
        normalize_top_k=facts.flag("norm_topk_prob") if normalize is None else normalize,
        routing_scale=float(facts.number_or("routing_scale", 1.0)),
        groups=_read_groups(facts),
        router_jitter=float(facts.number_or("router_jitter", 0.0)),
        latent=latent,
        qkv_bias=facts.flag("qkv_bias") or facts.flag("attention_bias"),
        o_bias=facts.flag("attention_bias"),
        lm_head_bias=facts.flag("lm_head_bias"),
        clip_qkv=facts.number_or("clip_qkv", None),
        tied_embeddings=facts.flag("tie_word_embeddings"),
        norm_epsilon=float(number("norm_epsilon")),
        rope_theta=float(number("rope_theta")),
        stretch=read_stretch(
            config, family.model_type, family.rope_types, rotary_dim, number("max_positions")
        ),
        quantization=read_quantization(config, number("num_layers")),
    )


def all_names(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """Sizes that have several config keys, by every one of these.

    Raises:
        CheckpointError: a size is missing or not a number.
    """
    facts = _Config(family, config)
    several = {name: keys for name, keys in family.config_keys.items() if isinstance(keys, tuple)}
    return {key: facts.number(name) for name, keys in several.items() for key in keys}


def _read_latent(facts: _Config) -> LatentAttention | None:
    if not facts.knows("kv_latent"):
        return None
    return LatentAttention(
        query_rank=facts.number_or("q_latent", 0),
        key_rank=facts.number("kv_latent"),
        rope_dim=facts.number("rope_dim"),
        nope_dim=facts.number("nope_dim"),
        value_dim=facts.number("value_dim"),
    )


def _read_groups(facts: _Config) -> ExpertGroups | None:
    count = facts.number_or("groups", 1)
    if facts.values.get("topk_method") != GROUP_LIMITED:
        if count != 1:
            raise CheckpointError(
                f"config.json: there are {count} groups of experts, but topk_method is not "
                f"{GROUP_LIMITED!r}, for which alone {facts.family.model_type} has them"
            )
        return None
    groups, experts = ExpertGroups(count, facts.number("top_groups")), facts.number("num_experts")
    if count < 1 or experts % count or not 1 <= groups.kept <= count:
        raise CheckpointError(
            f"config.json: {groups.kept} of {count} groups cannot be chosen from {experts} experts "
            f"of {facts.family.model_type}"
        )
    return groups


def _shared_width(facts: _Config) -> int:
    """Width of the unpruned model's shared expert; 0 without one."""
    if facts.knows("num_shared_experts"):
        return int(facts.number("num_shared_experts") * facts.number("width"))
    return int(facts.number("shared_width")) if facts.knows("shared_width") else 0


def _read_shared_widths(
    facts: _Config, config: dict[str, Any], widths: tuple[tuple[int, ...], ...]
) -> tuple[int | None, ...]:
    most = _shared_width(facts)
    whole = tuple(most if most and layer else None for layer in widths)
    is_pruned = str(config.get("model_type", "")).startswith(PRUNED_PREFIX)
    if not is_pruned or SHARED_WIDTHS_KEY not in config:
        return whole
    given = config[SHARED_WIDTHS_KEY]
    if (
        not isinstance(given, list)
        or len(given) != len(whole)
        or not all(
            width is None if limit is None else type(width) is int and 0 <= width <= limit
            for width, limit in zip(given, whole, strict=True)
        )
    ):
        raise CheckpointError(
            f"config.json: {SHARED_WIDTHS_KEY} is {given!r}, expected for each of {len(whole)} "
            f"layers a width between 0 and {most}, or null where it has no shared expert"
        )
    return tuple(given)


def _check_window(facts: _Config) -> None:
    """Stops at an attention window that is shorter than the positions of the model."""
    window, positions = facts.values.get("sliding_window"), facts.number("max_positions")
    if window and window < positions and facts.values.get("use_sliding_window", True):
        raise CheckpointError(
            f"config.json: sliding_window is {window}, less than the {positions} positions of the "
            f"model; attention within a window is not supported for {facts.family.model_type}"
        )


def _check_heads(facts: _Config, head_dim: int, rotary_dim: int) -> None:
    if head_dim % HEAD_UNIT or rotary_dim % HEAD_UNIT:
        raise CheckpointError(
            f"config.json: a head of this {facts.family.model_type} has {head_dim} entries, "
            f"{rotary_dim} of them rotated; ONNX Runtime's attention asks for a multiple of "
            f"{HEAD_UNIT} of both"
        )


def _moe_layers(facts: _Config, num_layers: int) -> list[bool]:
    """True for each layer that has experts, by the rules of transformers."""
    rules, values = facts.family.dense_layers, facts.values
    step = values.get("decoder_sparse_step", 1) if "decoder_sparse_step" in rules else 1
    plain = values.get("mlp_only_layers", []) if "mlp_only_layers" in rules else []
    first = facts.number_or("first_k", 0) if "first_k" in rules else 0
    if not isinstance(step, int) or step < 1 or not isinstance(plain, list):
        raise CheckpointError(
            f"config.json: decoder_sparse_step is {step!r} and mlp_only_layers is {plain!r}, "
            f"expected a positive number and a list for {facts.family.model_type}"
        )
    has_experts = [
        layer >= first and layer not in plain and (layer + 1) % step == 0
        for layer in range(num_layers)
    ]
    if not any(has_experts):
        raise CheckpointError(
            f"config.json: no layer of this {facts.family.model_type} has experts; there is "
            "nothing to prune"
        )
    return has_experts


def _read_widths(facts: _Config, config: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    num_layers, num_experts, most = map(facts.number, ("num_layers", "num_experts", "width"))
    counts = [num_experts * moe for moe in _moe_layers(facts, num_layers)]
    if not str(config.get("model_type", "")).startswith(PRUNED_PREFIX):
        return tuple((most,) * count for count in counts)
    widths = config.get(WIDTHS_KEY)
    well_formed = (
        isinstance(widths, list)
        and len(widths) == num_layers
        and all(
            isinstance(row, list) and len(row) == count
            for row, count in zip(widths, counts, strict=True)
        )
        and all(isinstance(w, int) and 0 <= w <= most for row in widths for w in row)
    )
    if not isinstance(widths, list) or not well_formed:
        dense = counts.count(0)
        without = f" ({dense} of them without experts)" if dense else ""
        raise CheckpointError(
            f"config.json: {WIDTHS_KEY} must hold {num_layers} lists{without} of {num_experts} "
            f"widths between 0 and {most}"
        )
    return tuple(tuple(row) for row in widths)
