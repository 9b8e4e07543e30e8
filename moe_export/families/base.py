"""What a model family is, and what a model of it is made of.

A family is data: the keys of its `config.json`, the names of its tensors, its routing rule. Reading
a config with it (`families.config`) gives a `ModelSpec`, from which every other part takes its
sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from moe_export.experts import ExpertTable
from moe_export.families.features import ExpertGroups, LatentAttention
from moe_export.families.rope import RopeType, Stretch, Yarn
from moe_export.quantization import UNQUANTIZED, Quantization

PRUNED_PREFIX = "moe_export_"
"""Prepended to a family's model_type in the config of a pruned checkpoint."""

WIDTHS_KEY = "expert_widths"
"""Config key of a pruned checkpoint: per layer, per expert, the kept width."""

SHARED_WIDTHS_KEY = "shared_expert_widths"
"""Config key of a pruned checkpoint whose shared expert is pruned too: its width per layer, null in
a layer without experts."""

TensorClass = Literal[
    "embeddings", "attention", "router", "experts", "shared_expert", "dense_mlp", "norms"
]
"""The classes that memory is reported in."""

TENSOR_CLASSES: tuple[TensorClass, ...] = (
    "embeddings",
    "attention",
    "router",
    "experts",
    "shared_expert",
    "dense_mlp",
    "norms",
)


@dataclass(frozen=True)
class TensorRule:
    """One kind of tensor of a family.

    Attributes:
        role: what it is, the same word in every family.
        template: its name in the checkpoint, with {layer} and {expert} where it has them.
        shape: symbols of `ModelSpec.size`, or `width` and `shared` for the width of the expert.
        tensor_class: the class its memory is reported in.
        when: a boolean attribute of `ModelSpec` without which the tensor is absent.
        layers: which layers have it: all, those with experts, or those without.
    """

    role: str
    template: str
    shape: tuple[str, ...]
    tensor_class: TensorClass
    when: str | None = None
    layers: Literal["all", "moe", "dense"] = "all"


@dataclass(frozen=True)
class FusedRule:
    """Where transformers 5 keeps what the tensor rules name one by one.

    It writes so if told not to save in the original format. Tensors of experts are joined into one
    [experts, rows, columns]; any other tensor merely has another name.

    Attributes:
        roles: in the order in which they lie along the rows of each expert.
        template: the name, with {layer}.
    """

    roles: tuple[str, ...]
    template: str


@dataclass(frozen=True)
class Family:
    """The facts of a model family.

    Attributes:
        model_type: as in `config.json`.
        architecture: the class of transformers that is the oracle.
        config_keys: our name of a size to its key in `config.json`, or to all keys it may have.
        config_defaults: values that transformers assumes for keys that a config may leave out.
        refused: config keys whose listed values are the only ones supported; a key that is absent
            or null is always accepted.
        moe_module: attribute path of the MoE block within a decoder layer, as in the names of
            tensors.
        tensors: every tensor a checkpoint may hold.
        fused: the names of transformers 5 for some of them.
        dense_layers: the config keys that say which layers have a plain MLP and no experts.
        norm: of the residual stream: root-mean-square, or LayerNorm with a bias.
        qk_norm: queries and keys are normalized within each head, or over all heads together.
        routing: softmax over all experts and the largest of them, or Phi-MoE's sparse mixer.
        normalize_top_k: whether the chosen weights are divided by their sum; None if the config
            says so by `norm_topk_prob`.
        router_float32: whether the router's product is in float32 whatever the model's dtype.
        shared_gate: whether the shared expert has a weight of its own for each token.
        rope_types: how frequencies may be stretched.
        moe_returns_logits: whether the MoE block of transformers 4 also returns router logits to a
            decoder layer that insists on them.
    """

    model_type: str
    architecture: str
    config_keys: dict[str, str | tuple[str, ...]]
    config_defaults: dict[str, Any]
    refused: dict[str, tuple[Any, ...]]
    moe_module: str
    tensors: tuple[TensorRule, ...]
    fused: tuple[FusedRule, ...]
    dense_layers: tuple[Literal["decoder_sparse_step", "mlp_only_layers", "first_k"], ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    qk_norm: Literal["head", "all"] | None = None
    routing: Literal["softmax", "sparsemixer"] = "softmax"
    normalize_top_k: bool | None = None
    router_float32: bool = False
    shared_gate: bool = True
    rope_types: tuple[RopeType, ...] = ("default", "yarn")
    moe_returns_logits: bool = False


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
        head_dim: entries of a head's query and key.
        widths: per layer, per expert; all equal until the model is pruned. A layer without experts
            has none.
        shared_widths: per layer, of the always-on expert; None where there is none.
        dense_width: width of the MLP of layers without experts, 0 if there are none.
        normalize_top_k: whether the chosen routing weights are divided by their sum.
        routing_scale: what the routing weights are multiplied with.
        groups: of experts, of which a token sees only some; None if it sees all.
        router_jitter: how far, relatively, the sparse mixer looks below the largest logit.
        latent: of latent attention; None for plain attention.
        clip_qkv: queries, keys and values are cut off at this magnitude; None if they are not.
        stretch: of rotary frequencies to a longer context; None if they are as they were.
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
    shared_widths: tuple[int | None, ...]
    dense_width: int
    normalize_top_k: bool
    routing_scale: float
    groups: ExpertGroups | None
    router_jitter: float
    latent: LatentAttention | None
    qkv_bias: bool
    o_bias: bool
    lm_head_bias: bool
    clip_qkv: float | None
    tied_embeddings: bool
    norm_epsilon: float
    rope_theta: float
    stretch: Stretch | None
    quantization: Quantization = UNQUANTIZED

    def table(self, layer: int, *, shared: bool = False) -> ExpertTable:
        """Where the experts of a layer lie on R: the routed ones, and then the shared one if it is
        asked for.
        """
        last = self.shared_widths[layer] if shared else None
        return ExpertTable(self.widths[layer] if last is None else (*self.widths[layer], last))

    def resized(self, widths: Sequence[Sequence[int]], *, shared: bool = False) -> ModelSpec:
        """The model with experts of other widths, given per layer in the order of `table`."""
        routed = tuple(tuple(layer[: self.num_experts]) for layer in widths)
        if not shared:
            return replace(self, widths=routed)
        last = tuple(layer[self.num_experts] if layer else None for layer in widths)
        return replace(self, widths=routed, shared_widths=last)

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts, however narrow; if not it has a plain MLP."""
        return bool(self.widths[layer])

    @property
    def parameters(self) -> int:
        """Number of values of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def has_shared_expert(self) -> bool:
        """Whether every layer with experts has an always-on one, however narrow."""
        return any(width is not None for width in self.shared_widths)

    @property
    def has_lm_head(self) -> bool:
        """Whether logits have a matrix of their own."""
        return not self.tied_embeddings

    @property
    def has_query_latent(self) -> bool:
        """Whether queries come from a latent vector."""
        return self.latent is not None and self.latent.query_rank > 0

    @property
    def has_whole_queries(self) -> bool:
        """Whether queries come from the input."""
        return not self.has_query_latent

    @property
    def rotary_dim(self) -> int:
        """How many entries of a head are rotated."""
        return self.head_dim if self.latent is None else self.latent.rope_dim

    @property
    def attention_scale(self) -> float:
        """What products of queries and keys are multiplied with."""
        scale = float(self.head_dim**-0.5)
        if isinstance(self.stretch, Yarn) and self.latent is not None:
            scale *= self.stretch.score_scale
        return scale

    def size(self, symbol: str) -> int:
        """The length that a symbol of a tensor rule stands for."""
        sizes = {
            "hidden": self.hidden_size,
            "vocab": self.vocab_size,
            "experts": self.num_experts,
            "dense": self.dense_width,
            "head": self.head_dim,
            "q": self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "one": 1,
        }
        if self.latent is not None:
            expanded = self.latent.nope_dim + self.latent.value_dim
            sizes |= {
                "q_latent": self.latent.query_rank,
                "kv_latent": self.latent.key_rank,
                "kv_latent_and_rope": self.latent.key_rank + self.latent.rope_dim,
                "kv_expanded": self.num_heads * expanded,
                "values": self.num_heads * self.latent.value_dim,
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
            absent = "dense" if self.has_experts(layer) else "moe"
            specs |= {
                name: spec
                for rule in rules
                if "{layer}" in rule.template and rule.layers != absent
                for name, spec in self._of_layer(rule, layer)
            }
        return specs

    def _of_layer(self, rule: TensorRule, layer: int) -> Iterator[tuple[str, TensorSpec]]:
        experts = range(self.num_experts) if "{expert}" in rule.template else (None,)
        for expert in experts:
            own = {"shared": self.shared_widths[layer] or 0}
            if expert is not None:
                own["width"] = self.widths[layer][expert]
            shape = tuple(
                own[symbol] if symbol in own else self.size(symbol) for symbol in rule.shape
            )
            name = rule.template.format(layer=layer, expert=expert)
            yield name, TensorSpec(rule.role, shape, rule.tensor_class, layer, expert)

    def name(self, role: str, layer: int | None = None, expert: int | None = None) -> str:
        """The checkpoint name of a tensor by its role."""
        for rule in self.family.tensors:
            if rule.role == role:
                return rule.template.format(layer=layer, expert=expert)
        raise KeyError(role)
