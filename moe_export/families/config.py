"""Reader of a model's sizes and features from its `config.json`.

A config key that changes the model is either understood here or stops the run with its name.
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
from moe_export.families.features import ExpertGroups, LatentAttention
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
"""Supported values of config keys, for all families; an empty tuple refuses the key."""


GROUP_LIMITED = "group_limited_greedy"
"""DeepSeek's name for routing by groups."""

HEAD_UNIT = 16
"""Unit of head sizes: GroupQueryAttention of ONNX Runtime (seen in 1.32) refuses other sizes."""


def is_pruned(config: dict[str, Any]) -> bool:
    """True for the config of a pruned checkpoint, and of an export of one.

    An export has its family's own model_type, with the widths beside it.
    """
    return WIDTHS_KEY in config or str(config.get("model_type", "")).startswith(PRUNED_PREFIX)


class _ConfigReader:
    """Reader of a config with the defaults of its family; its errors name the key."""

    def __init__(self, family: Family, config: dict[str, Any]) -> None:
        self.family = family
        values = family.config_defaults | config
        rope = rope_facts(config)
        # transformers 5 writes these keys into rope_parameters, which have precedence.
        values |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        self.values = {key: value for key, value in values.items() if value is not None}

    def check_refused(self) -> None:
        """Checks that all values are supported.

        Raises:
            CheckpointError: A value is not supported.
        """
        for key, allowed in (REFUSED | self.family.refused).items():
            if key in self.values and self.values[key] not in allowed:
                expected = " or ".join(map(repr, allowed)) if allowed else "no such key"
                raise CheckpointError(
                    f"config.json: {key} is {self.values[key]!r}, which is not supported for "
                    f"{self.family.model_type}; expected {expected}"
                )

    def knows(self, name: str) -> bool:
        """True if the family has a size of this name."""
        return name in self.family.config_keys

    def number(self, name: str) -> Any:
        """Size with the given name.

        Raises:
            CheckpointError: The size is missing, not a number, or differs between two of its keys.
        """
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
        """Size with the given name, or the default if the config or the family does not have it."""
        named = self.family.config_keys.get(name, ())
        keys = (named,) if isinstance(named, str) else named
        return self.number(name) if any(key in self.values for key in keys) else default

    def flag(self, key: str) -> bool:
        """True if the config has the key and its value is true."""
        return bool(self.values.get(key, False))


def read_spec(family: Family, config: dict[str, Any]) -> ModelSpec:
    """Reads the sizes of a model from its config, pruned or not.

    Raises:
        CheckpointError: A key is missing, has a value of the wrong type, or is not supported.
    """
    reader = _ConfigReader(family, config)
    reader.check_refused()
    number = reader.number
    hidden_size, num_heads = number("hidden_size"), number("num_heads")
    latent = _read_latent(reader)
    if latent is not None:
        head_dim, num_kv_heads = latent.rope_dim + latent.nope_dim, num_heads
    else:
        head_dim = reader.values.get("head_dim") or hidden_size // num_heads
        num_kv_heads = reader.number_or("num_kv_heads", num_heads)
    _check_window(reader)
    rotary_dim = head_dim if latent is None else latent.rope_dim
    _check_heads(reader, head_dim, rotary_dim)
    widths = _read_widths(reader, config)
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
        shared_widths=_read_shared_widths(reader, config, widths),
        dense_width=number("dense_width") if has_dense_layers else 0,
        normalize_top_k=reader.flag("norm_topk_prob") if normalize is None else normalize,
        routing_scale=float(reader.number_or("routing_scale", 1.0)),
        groups=_read_groups(reader),
        router_jitter=float(reader.number_or("router_jitter", 0.0)),
        latent=latent,
        qkv_bias=reader.flag("qkv_bias") or reader.flag("attention_bias"),
        o_bias=reader.flag("attention_bias"),
        lm_head_bias=reader.flag("lm_head_bias"),
        clip_qkv=reader.number_or("clip_qkv", None),
        tied_embeddings=reader.flag("tie_word_embeddings"),
        norm_epsilon=float(number("norm_epsilon")),
        rope_theta=float(number("rope_theta")),
        stretch=read_stretch(
            config, family.model_type, family.rope_types, rotary_dim, number("max_positions")
        ),
        quantization=read_quantization(config, number("num_layers")),
    )


def all_names(family: Family, config: dict[str, Any]) -> dict[str, Any]:
    """Values of the sizes that have several config keys, under each key.

    Raises:
        CheckpointError: A size is missing or not a number.
    """
    reader = _ConfigReader(family, config)
    several = {name: keys for name, keys in family.config_keys.items() if isinstance(keys, tuple)}
    return {key: reader.number(name) for name, keys in several.items() for key in keys}


def _read_latent(reader: _ConfigReader) -> LatentAttention | None:
    if not reader.knows("kv_latent"):
        return None
    return LatentAttention(
        query_rank=reader.number_or("q_latent", 0),
        key_rank=reader.number("kv_latent"),
        rope_dim=reader.number("rope_dim"),
        nope_dim=reader.number("nope_dim"),
        value_dim=reader.number("value_dim"),
    )


def _read_groups(reader: _ConfigReader) -> ExpertGroups | None:
    count = reader.number_or("groups", 1)
    if reader.values.get("topk_method") != GROUP_LIMITED:
        if count != 1:
            raise CheckpointError(
                f"config.json: there are {count} groups of experts, but topk_method is not "
                f"{GROUP_LIMITED!r}, for which alone {reader.family.model_type} has them"
            )
        return None
    groups, experts = ExpertGroups(count, reader.number("top_groups")), reader.number("num_experts")
    if count < 1 or experts % count or not 1 <= groups.kept <= count:
        raise CheckpointError(
            f"config.json: {groups.kept} of {count} groups cannot be chosen from {experts} experts "
            f"of {reader.family.model_type}"
        )
    return groups


def _shared_width(reader: _ConfigReader) -> int:
    """Width of the shared expert before pruning; 0 if the model has none."""
    if reader.knows("num_shared_experts"):
        return int(reader.number("num_shared_experts") * reader.number("width"))
    return int(reader.number("shared_width")) if reader.knows("shared_width") else 0


def _read_shared_widths(
    reader: _ConfigReader, config: dict[str, Any], widths: tuple[tuple[int, ...], ...]
) -> tuple[int | None, ...]:
    most = _shared_width(reader)
    unpruned = tuple(most if most and layer else None for layer in widths)
    if not is_pruned(config) or SHARED_WIDTHS_KEY not in config:
        return unpruned
    pruned = config[SHARED_WIDTHS_KEY]
    if (
        not isinstance(pruned, list)
        or len(pruned) != len(unpruned)
        or not all(
            width is None if limit is None else type(width) is int and 0 <= width <= limit
            for width, limit in zip(pruned, unpruned, strict=True)
        )
    ):
        raise CheckpointError(
            f"config.json: {SHARED_WIDTHS_KEY} is {pruned!r}, expected for each of {len(unpruned)} "
            f"layers a width between 0 and {most}, or null where it has no shared expert"
        )
    return tuple(pruned)


def _check_window(reader: _ConfigReader) -> None:
    """Checks that no attention window is shorter than the model's positions.

    Raises:
        CheckpointError: The window is shorter and in use.
    """
    window, positions = reader.values.get("sliding_window"), reader.number("max_positions")
    if window and window < positions and reader.values.get("use_sliding_window", True):
        raise CheckpointError(
            f"config.json: sliding_window is {window}, less than the {positions} positions of the "
            f"model; attention within a window is not supported for {reader.family.model_type}"
        )


def _check_heads(reader: _ConfigReader, head_dim: int, rotary_dim: int) -> None:
    if head_dim % HEAD_UNIT or rotary_dim % HEAD_UNIT:
        raise CheckpointError(
            f"config.json: a head of this {reader.family.model_type} has {head_dim} entries, "
            f"{rotary_dim} of them rotated; ONNX Runtime's attention asks for a multiple of "
            f"{HEAD_UNIT} of both"
        )


def _moe_layers(reader: _ConfigReader, num_layers: int) -> list[bool]:
    """True for each layer that has experts, by the rules of transformers."""
    rules, values = reader.family.dense_layers, reader.values
    step = values.get("decoder_sparse_step", 1) if "decoder_sparse_step" in rules else 1
    plain = values.get("mlp_only_layers", []) if "mlp_only_layers" in rules else []
    first = reader.number_or("first_k", 0) if "first_k" in rules else 0
    if not isinstance(step, int) or step < 1 or not isinstance(plain, list):
        raise CheckpointError(
            f"config.json: decoder_sparse_step is {step!r} and mlp_only_layers is {plain!r}, "
            f"expected a positive number and a list for {reader.family.model_type}"
        )
    has_experts = [
        layer >= first and layer not in plain and (layer + 1) % step == 0
        for layer in range(num_layers)
    ]
    if not any(has_experts):
        raise CheckpointError(
            f"config.json: no layer of this {reader.family.model_type} has experts; there is "
            "nothing to prune"
        )
    return has_experts


def _read_widths(reader: _ConfigReader, config: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    num_layers, num_experts, most = map(reader.number, ("num_layers", "num_experts", "width"))
    counts = [num_experts * moe for moe in _moe_layers(reader, num_layers)]
    if not is_pruned(config):
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
