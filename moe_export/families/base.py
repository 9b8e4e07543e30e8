"""What a model family is, and what a model of it is made of.

A family is data: the keys of its `config.json`, the names of its tensors, its routing rule. Reading
a config with it gives a `ModelSpec`, from which every other part takes its sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from moe_export.errors import CheckpointError
from moe_export.experts import ExpertTable
from moe_export.quantization import UNQUANTIZED, Quantization, read_quantization

PRUNED_PREFIX = "moe_export_"
"""Prepended to a family's model_type in the config of a pruned checkpoint."""

WIDTHS_KEY = "expert_widths"
"""Config key of a pruned checkpoint: per layer, per expert, the kept width."""

TensorClass = Literal["embeddings", "attention", "router", "experts", "shared_expert", "norms"]
"""The classes that memory is reported in."""

TENSOR_CLASSES: tuple[TensorClass, ...] = (
    "embeddings",
    "attention",
    "router",
    "experts",
    "shared_expert",
    "norms",
)


@dataclass(frozen=True)
class TensorRule:
    """One kind of tensor of a family.

    Attributes:
        role: what it is, the same word in every family.
        template: its name in the checkpoint, with {layer} and {expert} where it has them.
        shape: symbols of `ModelSpec.size`, or `width` for the width of the expert.
        tensor_class: the class its memory is reported in.
        when: a boolean attribute of `ModelSpec` without which the tensor is absent.
    """

    role: str
    template: str
    shape: tuple[str, ...]
    tensor_class: TensorClass
    when: str | None = None


@dataclass(frozen=True)
class Family:
    """The facts of a model family.

    Attributes:
        model_type: as in `config.json`.
        architecture: the class of transformers that is the oracle.
        config_keys: our name of a size to its key in `config.json`.
        config_defaults: values that transformers assumes for keys that a config may leave out.
        refused: config keys whose listed values are the only ones supported.
        moe_module: attribute path of the MoE block within a decoder layer.
        tensors: every tensor a checkpoint may hold.
    """

    model_type: str
    architecture: str
    config_keys: dict[str, str]
    config_defaults: dict[str, Any]
    refused: dict[str, tuple[Any, ...]]
    moe_module: str
    tensors: tuple[TensorRule, ...]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model must have."""

    role: str
    shape: tuple[int, ...]
    tensor_class: TensorClass
    layer: int | None = None
    expert: int | None = None

    @property
    def elements(self) -> int:
        """How many values it holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class ModelSpec:
    """The sizes and choices of one model, read from its config.

    Attributes:
        widths: per layer, per expert; all equal until the model is pruned.
        shared_width: width of the always-on expert, 0 if there is none.
        normalize_top_k: whether the chosen routing weights are divided by their sum.
        quantization: what is stored in fewer bits; shapes and numbers of elements are as without.
    """

    family: Family = field(repr=False)
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    num_experts: int
    top_k: int
    widths: tuple[tuple[int, ...], ...]
    shared_width: int
    normalize_top_k: bool
    qkv_bias: bool
    tied_embeddings: bool
    norm_epsilon: float
    rope_theta: float
    quantization: Quantization = UNQUANTIZED

    def table(self, layer: int) -> ExpertTable:
        """Where the experts of a layer lie on R."""
        return ExpertTable(self.widths[layer])

    @property
    def has_shared_expert(self) -> bool:
        """Whether every layer has an always-on expert."""
        return self.shared_width > 0

    @property
    def has_lm_head(self) -> bool:
        """Whether logits have a matrix of their own."""
        return not self.tied_embeddings

    def size(self, symbol: str) -> int:
        """The length that a symbol of a tensor rule stands for."""
        sizes = {
            "hidden": self.hidden_size,
            "vocab": self.vocab_size,
            "experts": self.num_experts,
            "shared": self.shared_width,
            "q": self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "one": 1,
        }
        return sizes[symbol]

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor by its checkpoint name, those of the whole model first, then by layer."""
        specs: dict[str, TensorSpec] = {}
        rules = [r for r in self.family.tensors if r.when is None or getattr(self, r.when)]
        for rule in rules:
            if "{layer}" not in rule.template:
                shape = tuple(self.size(symbol) for symbol in rule.shape)
                specs[rule.template] = TensorSpec(rule.role, shape, rule.tensor_class)
        for layer in range(self.num_layers):
            specs |= {
                name: spec
                for rule in rules
                if "{layer}" in rule.template
                for name, spec in self._of_layer(rule, layer)
            }
        return specs

    def _of_layer(self, rule: TensorRule, layer: int) -> Iterator[tuple[str, TensorSpec]]:
        experts = range(self.num_experts) if "{expert}" in rule.template else (None,)
        for expert in experts:
            shape = tuple(
                self.widths[layer][expert]
                if symbol == "width" and expert is not None
                else self.size(symbol)
                for symbol in rule.shape
            )
            name = rule.template.format(layer=layer, expert=expert)
            yield name, TensorSpec(rule.role, shape, rule.tensor_class, layer, expert)

    def name(self, role: str, layer: int | None = None, expert: int | None = None) -> str:
        """The checkpoint name of a tensor by its role."""
        for rule in self.family.tensors:
            if rule.role == role:
                return rule.template.format(layer=layer, expert=expert)
        raise KeyError(role)


def read_spec(family: Family, config: dict[str, Any]) -> ModelSpec:
    """Reads the sizes of a model from its config, pruned or not.

    Raises:
        CheckpointError: a key is missing or of the wrong kind, or asks for something unsupported.
    """
    facts = family.config_defaults | config
    rope = facts.get("rope_parameters") or {}
    # Where transformers 5 writes rope_theta, and what it goes by if both are there.
    facts |= {key: rope[key] for key in ("rope_theta",) if key in rope}
    facts = {key: value for key, value in facts.items() if value is not None}
    if rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"config.json: rope_type {rope['rope_type']!r} is not supported for "
            f"{family.model_type}; only 'default' is"
        )
    for key, allowed in family.refused.items():
        if facts.get(key) not in (None, *allowed):
            raise CheckpointError(
                f"config.json: {key} is {facts[key]!r}, which is not supported for "
                f"{family.model_type}; expected {' or '.join(map(repr, allowed))}"
            )

    def number(name: str) -> Any:
        key = family.config_keys[name]
        value = facts.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise CheckpointError(
                f"config.json: {key} is {value!r}, expected a number for {family.model_type}"
            )
        return value

    num_layers, num_experts, width = number("num_layers"), number("num_experts"), number("width")
    uniform = tuple((width,) * num_experts for _ in range(num_layers))
    hidden_size, num_heads = number("hidden_size"), number("num_heads")
    return ModelSpec(
        family=family,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=number("num_kv_heads"),
        head_dim=facts.get("head_dim") or hidden_size // num_heads,
        vocab_size=number("vocab_size"),
        max_positions=number("max_positions"),
        num_experts=num_experts,
        top_k=number("top_k"),
        widths=_read_widths(config, num_layers, num_experts, width) or uniform,
        shared_width=number("shared_width") if "shared_width" in family.config_keys else 0,
        normalize_top_k=bool(facts.get("norm_topk_prob", False)),
        qkv_bias=bool(facts.get("qkv_bias", False)),
        tied_embeddings=bool(facts.get("tie_word_embeddings", False)),
        norm_epsilon=float(number("norm_epsilon")),
        rope_theta=float(number("rope_theta")),
        quantization=read_quantization(config, num_layers),
    )


def _read_widths(
    config: dict[str, Any], num_layers: int, num_experts: int, most: int
) -> tuple[tuple[int, ...], ...] | None:
    if not str(config.get("model_type", "")).startswith(PRUNED_PREFIX):
        return None
    widths = config.get(WIDTHS_KEY)
    well_formed = (
        isinstance(widths, list)
        and len(widths) == num_layers
        and all(isinstance(row, list) and len(row) == num_experts for row in widths)
        and all(isinstance(w, int) and 0 <= w <= most for row in widths for w in row)
    )
    if not isinstance(widths, list) or not well_formed:
        raise CheckpointError(
            f"config.json: {WIDTHS_KEY} must hold {num_layers} lists of {num_experts} widths "
            f"between 0 and {most}"
        )
    return tuple(tuple(row) for row in widths)
