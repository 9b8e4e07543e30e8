"""Reader of a model's sizes and features from its `config.json`.

A config key that changes the model is either understood here or stops the run with its name.
"""

from __future__ import annotations

from typing import Any

from moe_export.errors import CheckpointError, RecipeError
from moe_export.families.base import (
    PRUNED_PREFIX,
    SHARED_WIDTHS_KEY,
    WIDTHS_KEY,
    Family,
    ModelSpec,
)
from moe_export.families.extensions import is_extended, read_compressed, read_condensers
from moe_export.families.features import DeltaNet, ExpertGroups, LatentAttention, Mixer
from moe_export.families.rope import read_stretch, rope_facts
from moe_export.families.schema import (
    HEAD_DIM,
    MOST_EXPERTS,
    NUMBERS,
    Number,
    require_flags,
    require_token_ids,
    shown,
)
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

WINDOW = Number(0, 1 << 40)
"""Range of the length of an attention window; 0 stands for none."""

ATTENTION_TYPES = ("full_attention", "sliding_attention")
"""Words of `layer_types` for attention to all tokens and for attention within a window."""

HEAD_UNIT = 16
"""Unit of head sizes: GroupQueryAttention of ONNX Runtime (seen in 1.32) refuses other sizes."""

CACHED_UNIT = 16
"""Unit of the vectors in the cache of latent attention: both halves are multiples of 8."""


def is_pruned(config: dict[str, Any]) -> bool:
    """True for the config of a pruned checkpoint, and of an export of one.

    An export has its family's own model_type, with the widths beside it.
    """
    if WIDTHS_KEY in config:
        return True
    is_ours = str(config.get("model_type", "")).startswith(PRUNED_PREFIX)
    return is_ours and not is_extended(config)


class _ConfigReader:
    """Reader of a config with the defaults of its family; its errors name the key."""

    def __init__(self, family: Family, config: dict[str, Any]) -> None:
        self.family = family
        self.nulls = {key for key, value in config.items() if value is None}
        values = family.config_defaults | config
        rope = rope_facts(config)
        # transformers 5 writes these keys into rope_parameters, which have precedence.
        values |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        self.values = {key: value for key, value in values.items() if value is not None}

    def check_refused(self) -> None:
        """Checks that flags and token ids have their types, and that all values are supported.

        Raises:
            CheckpointError: A value has the wrong type or is not supported.
        """
        model_type = self.family.model_type
        require_flags(self.values, model_type)
        require_token_ids(self.values, "config.json")
        read = set(self.family.config_keys.values())
        general = {key: allowed for key, allowed in REFUSED.items() if key not in read}
        for key, allowed in (general | self.family.refused).items():
            if key in self.values and self.values[key] not in allowed:
                expected = " or ".join(map(repr, allowed)) if allowed else "no such key"
                raise CheckpointError(
                    f"config.json: {key} is {shown(self.values[key])}, which is not supported for "
                    f"{model_type}; expected {expected}"
                )

    def bias(self, name: str, *keys: str) -> bool:
        """True if one of the flags is true.

        Args:
            name: Attribute of `ModelSpec` without which the family's tensors are absent.
            keys: Config keys of the flags.

        Raises:
            CheckpointError: A flag is true, and the family has no such tensors.
        """
        given = [key for key in keys if self.flag(key)]
        if given and not self.has_tensors(name):
            raise CheckpointError(
                f"config.json: {given[0]} is True, but no {self.family.model_type} has such a "
                "bias; expected False or no such key"
            )
        return bool(given)

    def has_tensors(self, name: str) -> bool:
        """True if the family has tensors that depend on an attribute of `ModelSpec`."""
        return any(rule.when == name for rule in self.family.tensors)

    def knows(self, name: str) -> bool:
        """True if the family has a size of this name."""
        return name in self.family.config_keys

    def number(self, name: str) -> Any:
        """Size with the given name.

        Raises:
            CheckpointError: The size is missing, not a number in its range, or differs between two
                of its keys.
        """
        named = self.family.config_keys[name]
        keys = (named,) if isinstance(named, str) else named
        given = {key: self.values[key] for key in keys if key in self.values}
        for value in (*given.values(),) or (None,):
            self.require(NUMBERS[name], value, " or ".join(keys))
        value = next(iter(given.values()))
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

    def require(self, number: Number, value: Any, key: str) -> None:
        """Checks a number.

        Raises:
            CheckpointError: It has the wrong type or lies outside its range.
        """
        if not number.holds(value):
            raise CheckpointError(
                f"config.json: {key} is {shown(value)}, expected {number} for "
                f"{self.family.model_type}"
            )

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
    latent = _read_latent(reader)
    head_dim, num_kv_heads = _read_heads(reader, latent)
    rotated = float(reader.number_or("rotated", 1.0))
    rotary_dim = int(head_dim * rotated) if latent is None else latent.rope_dim
    _check_heads(reader, head_dim if latent is None else rotary_dim, rotary_dim)
    _check_experts(reader)
    widths = _read_widths(reader, config)
    has_dense_layers = any(not layer for layer in widths)
    normalize = family.normalize_top_k
    top_k, num_experts = number("top_k"), number("num_experts")
    return ModelSpec(
        family=family,
        hidden_size=number("hidden_size"),
        num_layers=number("num_layers"),
        num_heads=number("num_heads"),
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rotated=rotated,
        has_qk_norm=_has_qk_norm(reader),
        mixers=_read_mixers(reader),
        convolution_taps=number("convolution_taps") if reader.knows("convolution_taps") else 0,
        delta_net=_read_delta_net(reader),
        windows=_read_windows(reader),
        rotates=_read_rotates(reader),
        vocab_size=number("vocab_size"),
        max_positions=number("max_positions"),
        num_experts=num_experts,
        top_k=top_k,
        widths=widths,
        shared_widths=_read_shared_widths(reader, config, widths),
        dense_width=number("dense_width") if has_dense_layers else 0,
        normalize_top_k=reader.flag("norm_topk_prob") if normalize is None else normalize,
        routing_scale=float(reader.number_or("routing_scale", 1.0)),
        groups=_read_groups(reader),
        router_jitter=float(reader.number_or("router_jitter", 0.0)),
        latent=latent,
        qkv_bias=reader.bias("qkv_bias", "qkv_bias", "attention_bias"),
        # In some families attention_bias means only the first of the two.
        o_bias=reader.has_tensors("o_bias") and reader.bias("o_bias", "attention_bias"),
        lm_head_bias=reader.bias("lm_head_bias", "lm_head_bias"),
        clip_qkv=reader.number_or("clip_qkv", None),
        tied_embeddings=_is_tied(reader),
        norm_epsilon=float(number("norm_epsilon")),
        rope_theta=float(number("rope_theta")),
        stretch=read_stretch(
            config, family.model_type, family.rope_types, rotary_dim, number("max_positions")
        ),
        compressed=read_compressed(config, family, top_k, number("width")),
        condensers=read_condensers(
            config, family, top_k, num_experts, [bool(layer) for layer in widths]
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


def check_top_k(spec: ModelSpec, top_k: int) -> None:
    """Checks that a model has a number of experts per token, or more.

    Raises:
        RecipeError: The model's routers choose fewer.
    """
    if not 1 <= top_k <= spec.top_k:
        raise RecipeError(
            f"plan.top_k is {top_k}, but the routers of this {spec.family.model_type} choose "
            f"{spec.top_k} of {spec.num_experts} experts per token; give 1 to {spec.top_k}"
        )
    if top_k != spec.top_k and (spec.compressed or spec.condensers):
        raise RecipeError(
            f"plan.top_k is {top_k}, but this {spec.family.model_type} was tuned with compressed "
            f"experts or a router bias for {spec.top_k} experts per token; leave plan.top_k out"
        )


def with_top_k(spec: ModelSpec, config: dict[str, Any], top_k: int) -> dict[str, Any]:
    """Config of the same model with fewer experts per token.

    Args:
        spec: Sizes of the model.
        config: Content of its `config.json`.
        top_k: Experts per token, at most the model's.

    Raises:
        RecipeError: The model's routers choose fewer.
    """
    check_top_k(spec, top_k)
    named = spec.family.config_keys["top_k"]
    keys = (named,) if isinstance(named, str) else named
    present = [key for key in keys if key in config] or keys[:1]
    return config | dict.fromkeys(present, top_k)


def _read_latent(reader: _ConfigReader) -> LatentAttention | None:
    if not reader.knows("kv_latent"):
        return None
    key_rank, rope_dim = reader.number("kv_latent"), reader.number("rope_dim")
    if (key_rank + rope_dim) % CACHED_UNIT or rope_dim > key_rank:
        raise CheckpointError(
            f"config.json: kv_lora_rank is {key_rank} and qk_rope_head_dim {rope_dim}, expected a "
            f"sum that is a multiple of {CACHED_UNIT} and the first not smaller than the second, "
            f"since the cache of {reader.family.model_type} has two equal halves"
        )
    return LatentAttention(
        query_rank=reader.number_or("q_latent", 0),
        key_rank=key_rank,
        rope_dim=rope_dim,
        nope_dim=reader.number("nope_dim"),
        value_dim=reader.number("value_dim"),
    )


def _read_heads(reader: _ConfigReader, latent: LatentAttention | None) -> tuple[int, int]:
    """Entries of a query head, and the number of key heads.

    Raises:
        CheckpointError: The hidden size or the query heads cannot be divided evenly.
    """
    hidden_size, num_heads = reader.number("hidden_size"), reader.number("num_heads")
    num_kv_heads: int = reader.number_or("num_kv_heads", num_heads)
    if latent is not None:
        if num_kv_heads != num_heads:
            raise CheckpointError(
                f"config.json: num_key_value_heads is {num_kv_heads}, expected the {num_heads} of "
                f"num_attention_heads: attention of {reader.family.model_type} has as many"
            )
        return latent.rope_dim + latent.nope_dim, num_heads
    head_dim = reader.values.get("head_dim")
    if head_dim is not None:
        reader.require(HEAD_DIM, head_dim, "head_dim")
    elif hidden_size % num_heads:
        raise CheckpointError(
            f"config.json: hidden_size {hidden_size} cannot be divided among the {num_heads} of "
            f"num_attention_heads of this {reader.family.model_type}"
        )
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {num_heads} cannot be divided among the "
            f"{num_kv_heads} of num_key_value_heads of this {reader.family.model_type}"
        )
    return head_dim or hidden_size // num_heads, num_kv_heads


def _check_experts(reader: _ConfigReader) -> None:
    """Checks the numbers of experts before any list of them is made.

    Raises:
        CheckpointError: More are chosen than there are, or there are too many to be held.
    """
    experts, top_k, layers = map(reader.number, ("num_experts", "top_k", "num_layers"))
    if top_k > experts:
        raise CheckpointError(
            f"config.json: num_experts_per_tok is {top_k}, more than the {experts} experts of this "
            f"{reader.family.model_type}"
        )
    if experts * layers > MOST_EXPERTS:
        raise CheckpointError(
            f"config.json: {experts} experts in each of {layers} layers are more than the "
            f"{MOST_EXPERTS} that are supported for {reader.family.model_type}"
        )


def _is_tied(reader: _ConfigReader) -> bool:
    given = (key for key in reader.family.tie_keys if key in reader.values)
    return reader.flag(next(given, ""))


def _has_qk_norm(reader: _ConfigReader) -> bool:
    family = reader.family
    if family.qk_norm is None:
        return False
    return family.qk_norm_flag is None or reader.flag(family.qk_norm_flag)


def _read_groups(reader: _ConfigReader) -> ExpertGroups | None:
    count, by_best = reader.number_or("groups", 1), reader.family.routing.group_score == "best"
    if not by_best and count == 1 and reader.number_or("top_groups", 1) == 1:
        return None
    if by_best and "topk_method" in reader.nulls:
        raise CheckpointError(
            f"config.json: topk_method is null, expected 'greedy' or {GROUP_LIMITED!r} for "
            f"{reader.family.model_type}"
        )
    if by_best and reader.values.get("topk_method") != GROUP_LIMITED:
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
    if not by_best and experts < 2 * count:
        raise CheckpointError(
            f"config.json: {count} groups of {experts} experts have one expert each, expected two "
            f"or more: groups of {reader.family.model_type} are chosen by their best two"
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
            f"config.json: {SHARED_WIDTHS_KEY} is {shown(pruned)}, expected for each of "
            f"{len(unpruned)} layers a width between 0 and {most}, or null where it has no shared "
            "expert"
        )
    return tuple(pruned)


def _read_windows(reader: _ConfigReader) -> tuple[int, ...]:
    """Attention window of each layer in tokens; 0 where it is off, or as long as the context.

    Raises:
        CheckpointError: The window is no number, or is in use in a family without windows, also
            by a list of layer types.
    """
    window: int = reader.values.get("sliding_window", 0)
    reader.require(WINDOW, window, "sliding_window")
    positions: int = reader.number("max_positions")
    num_layers: int = reader.number("num_layers")
    is_whole = window >= positions
    if reader.family.windows == "none" and not reader.family.mixers:
        _check_types(reader, ATTENTION_TYPES[: 1 + is_whole])
    if not window or is_whole or not reader.values.get("use_sliding_window", True):
        return (0,) * num_layers
    match reader.family.windows:
        case "all":
            return (window,) * num_layers
        case "layer_types":
            types = _layer_types(reader, num_layers, *ATTENTION_TYPES)
            return tuple(window * (kind == ATTENTION_TYPES[1]) for kind in types)
        case "none":
            raise CheckpointError(
                f"config.json: sliding_window is {window}, less than the {positions} positions of "
                "the model; attention within a window is not supported for "
                f"{reader.family.model_type}"
            )


def _read_rotates(reader: _ConfigReader) -> tuple[bool, ...]:
    """True for each layer whose attention rotates queries and keys.

    Raises:
        CheckpointError: It depends on a window and on `layer_types`, and one of them is missing or
            has other values.
    """
    num_layers: int = reader.number("num_layers")
    if not reader.family.rotates_windows_alone:
        return (True,) * num_layers
    reader.require(WINDOW, reader.values.get("sliding_window"), "sliding_window")
    types = _layer_types(reader, num_layers, *ATTENTION_TYPES)
    return tuple(kind == ATTENTION_TYPES[1] for kind in types)


def _check_types(reader: _ConfigReader, known: tuple[str, ...]) -> None:
    """Stops at layer types that this family does not have; transformers goes by them."""
    types = reader.values.get("layer_types", [])
    if not isinstance(types, list) or not set(map(str, types)) <= {*known}:
        raise CheckpointError(
            f"config.json: layer_types is {shown(types)}, expected a list of {known[0]!r} for "
            f"every layer of {reader.family.model_type}; other attention is not supported"
        )


def _read_mixers(reader: _ConfigReader) -> tuple[Mixer, ...]:
    """Kind of mixer of each layer.

    Raises:
        CheckpointError: `layer_types` has other words, or not one for each layer.
    """
    words = reader.family.mixers
    num_layers: int = reader.number("num_layers")
    if words and "layer_types" not in reader.values and reader.knows("interval"):
        first, last = words.values()
        interval = reader.number("interval")
        return tuple(first if (layer + 1) % interval else last for layer in range(num_layers))
    if words:
        return tuple(words[word] for word in _layer_types(reader, num_layers, *words))
    return ("latent_attention" if reader.knows("kv_latent") else "attention",) * num_layers


def _read_delta_net(reader: _ConfigReader) -> DeltaNet | None:
    """Sizes of gated delta nets.

    Raises:
        CheckpointError: The value heads cannot be divided among the key heads.
    """
    if not reader.knows("delta_taps"):
        return None
    keys, values = reader.number("delta_key_heads"), reader.number("delta_value_heads")
    if values % keys:
        raise CheckpointError(
            f"config.json: linear_num_value_heads {values} cannot be divided among the {keys} of "
            f"linear_num_key_heads of this {reader.family.model_type}"
        )
    return DeltaNet(
        key_heads=keys,
        value_heads=values,
        key_dim=reader.number("delta_key_dim"),
        value_dim=reader.number("delta_value_dim"),
        taps=reader.number("delta_taps"),
        is_grouped=any(rule.role == "delta_in" for rule in reader.family.tensors),
    )


def _layer_types(reader: _ConfigReader, num_layers: int, *known: str) -> list[str]:
    """The config's `layer_types`, one of the known words for each layer.

    Raises:
        CheckpointError: They are no such list.
    """
    types = reader.values.get("layer_types")
    fits = isinstance(types, list) and set(map(str, types)) <= {*known}
    if not isinstance(types, list) or not fits or len(types) != num_layers:
        raise CheckpointError(
            f"config.json: layer_types is {shown(types)}, expected {' or '.join(map(repr, known))} "
            f"for each of {num_layers} layers of {reader.family.model_type}"
        )
    return types


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
    if "mlp_layer_types" in rules and "mlp_layer_types" in values:
        return _listed_moe_layers(reader, num_layers)
    if (
        type(step) is not int
        or step < 1
        or not isinstance(plain, list)
        or not all(type(layer) is int for layer in plain)
    ):
        raise CheckpointError(
            f"config.json: decoder_sparse_step is {shown(step)} and mlp_only_layers is "
            f"{shown(plain)}, expected a positive number and a list of layers for "
            f"{reader.family.model_type}"
        )
    plain_layers = set(plain)
    has_experts = [
        layer >= first and layer not in plain_layers and (layer + 1) % step == 0
        for layer in range(num_layers)
    ]
    if not any(has_experts):
        raise CheckpointError(
            f"config.json: no layer of this {reader.family.model_type} has experts; there is "
            "nothing to prune"
        )
    return has_experts


def _listed_moe_layers(reader: _ConfigReader, num_layers: int) -> list[bool]:
    """True for each layer that the config's list of layer types calls sparse."""
    types = reader.values["mlp_layer_types"]
    known = isinstance(types, list) and set(map(str, types)) <= {"dense", "sparse"}
    if not known or len(types) != num_layers or "sparse" not in types:
        raise CheckpointError(
            f"config.json: mlp_layer_types is {shown(types)}, expected 'dense' or 'sparse' for "
            f"each of {num_layers} layers of {reader.family.model_type}, and one sparse at least"
        )
    return [kind == "sparse" for kind in types]


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
        and all(type(w) is int and 0 <= w <= most for row in widths for w in row)
    )
    if not isinstance(widths, list) or not well_formed:
        dense = counts.count(0)
        without = f" ({dense} of them without experts)" if dense else ""
        raise CheckpointError(
            f"config.json: {WIDTHS_KEY} must hold {num_layers} lists{without} of {num_experts} "
            f"widths between 0 and {most}"
        )
    return tuple(tuple(row) for row in widths)
