"""Model families as data, and the sizes of one model.

A family is the keys of its `config.json`, the names of its tensors and its routing rule. Reading a
config with it (`families.config`) gives a `ModelSpec`, from which every other part takes its sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from moe_export.families.features import (
    CompressedExperts,
    Condensers,
    DeltaNet,
    ExpertGroups,
    LatentAttention,
    Mixer,
    Routing,
)
from moe_export.families.rope import RopeType, Stretch, Yarn
from moe_export.quantization import UNQUANTIZED, Quantization

PRUNED_PREFIX = "moe_export_"
"""Prefix of a family's model_type in the config of a pruned checkpoint."""

WIDTHS_KEY = "expert_widths"
"""Config key of a pruned checkpoint: the kept width of each expert, one list per layer."""

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
        role: Role of the tensor, the same word in every family.
        template: Name in the checkpoint, with {layer} and {expert} where it has them.
        shape: Symbols of `ModelSpec.size`, or `width` and `shared` for the width of the expert.
        tensor_class: Class that its memory is reported in.
        when: Boolean attribute of `ModelSpec` without which the tensor is absent.
        layers: Layers that have the tensor: all, those with experts, or those without.
        is_wide: True if the tensor is computed with in float32 whatever the model's dtype.
        mixer: Kind of mixer without which a layer lacks the tensor; None if every layer has it.
        offset: Number added to the stored values where they are used.
        stored: Dtype of the stored values; None if it may be that of the model.
    """

    role: str
    template: str
    shape: tuple[str, ...]
    tensor_class: TensorClass
    when: str | None = None
    layers: Literal["all", "moe", "dense"] = "all"
    is_wide: bool = False
    mixer: Mixer | None = None
    offset: float = 0.0
    stored: str | None = None


@dataclass(frozen=True)
class FusedRule:
    """Name of a fused tensor in checkpoints of transformers 5 (`save_original_format=False`).

    Tensors of experts are joined into one [experts, rows, columns]; any other tensor merely has
    another name.

    Attributes:
        roles: Roles of the joined tensors, in their order along the rows of each expert.
        template: Name of the fused tensor, with {layer}.
    """

    roles: tuple[str, ...]
    template: str


@dataclass(frozen=True)
class Family:
    """The facts of a model family.

    Attributes:
        model_type: `model_type` of `config.json`.
        architecture: Class of transformers that is the oracle.
        config_keys: Key in `config.json`, or all its possible keys, by our name of a size.
        config_defaults: Values that transformers assumes for keys that a config may leave out.
        refused: Supported values by config key; an absent or null key is always accepted.
        moe_module: Attribute path of the MoE block within a decoder layer, as in the names of
            tensors.
        tensors: Every tensor that a checkpoint may hold.
        fused: Names of transformers 5 for some of them.
        dense_layers: Config keys that decide which layers have a plain MLP and no experts.
        mixers: Kind of mixer by its word in the config's `layer_types`; empty if all layers have
            the same kind of attention. Without `layer_types`, every `full_attention_interval`-th
            layer has the last of them and the others the first.
        gates_attention: True if queries come with a gate of the attention's output.
        windows: Layers whose attention sees only the config's `sliding_window`: none of them, all,
            or those that `layer_types` calls sliding.
        rotates_windows_alone: True if layers of a model with a window rotate queries and keys only
            where attention is within it; the others go without positions.
        norm: Norm of the residual stream: root-mean-square, or LayerNorm with a bias.
        qk_norm: Norm of queries and keys: within each head, over all heads together, or none.
        qk_norm_flag: Config key that switches the norm of queries and keys on; None if it is always
            there.
        routing: Choice and weights of a token's experts.
        normalize_top_k: True if the chosen weights are divided by their sum; None if the config's
            `norm_topk_prob` decides.
        router_float32: True if the router's product is in float32 whatever the model's dtype.
        shared_gate: True if the shared expert has a weight of its own for each token.
        predicts_ahead: True if checkpoints may hold layers after the last one that predict tokens
            further ahead; they are dropped.
        ahead_prefix: Beginning of the names of tensors that predict tokens further ahead; None if
            they are in layers of their own. They are dropped.
        text_prefix: Beginning of the names of the language model's tensors in checkpoints of models
            that also see, in place of `model.`; None if there are no such checkpoints.
        vision_prefix: Beginning of the names of the other tensors there, which are dropped.
        rope_types: Kinds of stretched frequencies that are supported.
        tie_keys: Config keys that make the embedding the lm_head too; the first that is given
            decides.
        moe_returns_logits: True if the MoE block of transformers 4 also returns router logits to a
            decoder layer that insists on them.
        genai_type: Model type of onnxruntime-genai, which decides tokens of its tools and chat;
            `decoder` where it has none that is close.
        in_transformers_js: True if transformers.js has a class for this model type.
    """

    model_type: str
    architecture: str
    config_keys: dict[str, str | tuple[str, ...]]
    config_defaults: dict[str, Any]
    refused: dict[str, tuple[Any, ...]]
    moe_module: str
    tensors: tuple[TensorRule, ...]
    fused: tuple[FusedRule, ...]
    dense_layers: tuple[
        Literal["decoder_sparse_step", "mlp_only_layers", "first_k", "mlp_layer_types"], ...
    ] = ()
    mixers: dict[str, Mixer] = field(default_factory=dict)
    gates_attention: bool = False
    windows: Literal["none", "all", "layer_types"] = "none"
    rotates_windows_alone: bool = False
    norm: Literal["rms", "layer"] = "rms"
    qk_norm: Literal["head", "all"] | None = None
    qk_norm_flag: str | None = None
    routing: Routing = field(default_factory=Routing)
    normalize_top_k: bool | None = None
    router_float32: bool = False
    shared_gate: bool = True
    predicts_ahead: bool = False
    ahead_prefix: str | None = None
    text_prefix: str | None = None
    vision_prefix: str | None = None
    rope_types: tuple[RopeType, ...] = ("default", "yarn")
    tie_keys: tuple[str, ...] = ("tie_word_embeddings",)
    moe_returns_logits: bool = False
    genai_type: str = "decoder"
    in_transformers_js: bool = False

    @cached_property
    def rules(self) -> tuple[TensorRule, ...]:
        """Rules of all tensors, with those that `method: compressed_experts` and `condenser` add.

        They are float32 because a bfloat16 number near 1 swallows every small step. The positions
        `compressed_units` that pruned experts keep are float32 too, which holds them exactly.
        """
        router = next(rule.template for rule in self.tensors if rule.role == "router")
        prefix = f"model.layers.{{layer}}.{self.moe_module}.compressed."
        bias = router.removesuffix("weight") + "bias"

        def rule(role: str, name: str, when: str, *shape: str, stored: str) -> TensorRule:
            return TensorRule(role, name, shape, "router", when, "moe", is_wide=True, stored=stored)

        table, wide = "experts", "float32"
        return (
            *self.tensors,
            rule("router_bias", bias, "has_router_bias", table, stored=wide),
            rule(
                "compressed_input", f"{prefix}input", "scales_input", table, "hidden", stored=wide
            ),
            rule(
                "compressed_hidden",
                f"{prefix}hidden",
                "scales_hidden",
                table,
                "whole_width",
                stored=wide,
            ),
            rule("compressed_up", f"{prefix}up", "scales_up", table, "hidden", stored=wide),
            rule("compressed_units", f"{prefix}units", "has_units", "rows", stored=wide),
        )


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model must have."""

    role: str
    shape: tuple[int, ...]
    tensor_class: TensorClass
    layer: int | None = None
    expert: int | None = None
    is_wide: bool = False
    offset: float = 0.0
    stored: str | None = None

    @property
    def elements(self) -> int:
        """Number of values."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class ModelSpec:
    """The sizes and choices of one model, read from its config.

    Attributes:
        head_dim: Entries of a head's query and key.
        rotated: Fraction of a head's entries that are rotated in plain attention.
        has_qk_norm: True if queries and keys are normalized.
        mixers: Kind of mixer of each layer.
        convolution_taps: Number of tokens that a short convolution sees; 0 without one.
        delta_net: Sizes of gated delta nets; None without one.
        windows: Number of tokens, its own included, that a token attends to, one per layer; 0 for
            all of them.
        rotates: True for each layer whose attention rotates queries and keys.
        widths: Widths of the routed experts, one tuple per layer; empty in a layer without experts.
            All are equal until the model is pruned.
        shared_widths: Width of the always-on expert, one per layer; None without such an expert.
        dense_width: Width of the MLP of layers without experts; 0 if there are none.
        normalize_top_k: True if the chosen routing weights are divided by their sum.
        routing_scale: Factor of the routing weights.
        groups: Groups of experts, of which a token sees only some; None if it sees all experts.
        router_jitter: Relative distance below the largest logit that the sparse mixer looks at.
        latent: Sizes of latent attention; None for plain attention.
        clip_qkv: Largest magnitude of queries, keys and values; None without a limit.
        stretch: Stretch of rotary frequencies to a longer context; None without one.
        compressed: Experts per token that are vectors alone; None without any.
        condensers: Bias of the router and experts that every token gets; None without a bias.
        quantization: Formats of the stored tensors; shapes and numbers of elements are those of the
            float model.
    """

    family: Family = field(repr=False)
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotated: float
    has_qk_norm: bool
    mixers: tuple[Mixer, ...]
    convolution_taps: int
    delta_net: DeltaNet | None
    windows: tuple[int, ...]
    rotates: tuple[bool, ...]
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
    compressed: CompressedExperts | None = None
    condensers: Condensers | None = None
    quantization: Quantization = UNQUANTIZED

    def has_experts(self, layer: int) -> bool:
        """True if a layer has experts, however narrow; otherwise it has a plain MLP."""
        return bool(self.widths[layer])

    @property
    def parameters(self) -> int:
        """Number of values of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def has_shared_expert(self) -> bool:
        """True if every layer with experts has an always-on one, however narrow."""
        return any(width is not None for width in self.shared_widths)

    @property
    def largest_part(self) -> int:
        """Values of the largest layer, or of the tensors outside of one role if they are more."""
        parts: dict[object, int] = {}
        for tensor in self.tensors.values():
            part = tensor.role if tensor.layer is None else tensor.layer
            parts[part] = parts.get(part, 0) + tensor.elements
        return max(parts.values())

    @property
    def chosen_experts(self) -> int:
        """Experts that the router chooses for a token, those of vectors alone included."""
        kept = self.condensers is not None and self.condensers.kept_budget
        return self.top_k - (self.condensers.count if self.condensers and kept else 0)

    @property
    def active_experts(self) -> int:
        """Routed experts that are computed for a token, at most."""
        condensers = self.condensers.count if self.condensers is not None else 0
        auxiliary = self.compressed.auxiliary if self.compressed is not None else 0
        return self.chosen_experts + condensers - auxiliary

    @property
    def has_router_bias(self) -> bool:
        """True if a stored bias is added to the router's logits."""
        return self.condensers is not None

    @property
    def scales_input(self) -> bool:
        """True if vectors scale the experts' input."""
        return self.compressed is not None

    @property
    def scales_hidden(self) -> bool:
        """True if vectors scale the experts' hidden values."""
        return self.compressed is not None and self.compressed.form != "input"

    @property
    def scales_up(self) -> bool:
        """True if `up` reads an input of its own."""
        return self.compressed is not None and self.compressed.form == "three"

    @property
    def has_units(self) -> bool:
        """True if the positions that pruned experts keep of the vectors are stored."""
        if self.compressed is None or not self.scales_hidden:
            return False
        return any(width != self.compressed.width for layer in self.widths for width in layer)

    @property
    def has_fixed_states(self) -> bool:
        """True if a layer has a state whose size does not grow with the tokens."""
        return not {*self.mixers} <= {"attention", "latent_attention"}

    @property
    def has_lm_head(self) -> bool:
        """True if logits have a matrix of their own."""
        return not self.tied_embeddings

    @property
    def has_query_latent(self) -> bool:
        """True if queries come from a latent vector."""
        return self.latent is not None and self.latent.query_rank > 0

    @property
    def has_whole_queries(self) -> bool:
        """True if queries come from the input."""
        return not self.has_query_latent

    @property
    def rotary_dim(self) -> int:
        """Number of entries of a head that are rotated."""
        return int(self.head_dim * self.rotated) if self.latent is None else self.latent.rope_dim

    @property
    def attention_scale(self) -> float:
        """Factor of the products of queries and keys."""
        scale = float(self.head_dim**-0.5)
        if isinstance(self.stretch, Yarn) and self.latent is not None:
            scale *= self.stretch.score_scale
        return scale

    def size(self, symbol: str) -> int:
        """Length of an axis, by its symbol in a tensor rule."""
        sizes = {
            "hidden": self.hidden_size,
            "vocab": self.vocab_size,
            "experts": self.num_experts,
            "dense": self.dense_width,
            "head": self.head_dim,
            "q": self.num_heads * self.head_dim,
            "gated_q": 2 * self.num_heads * self.head_dim,
            "kv": self.num_kv_heads * self.head_dim,
            "one": 1,
            "conv_in": 3 * self.hidden_size,
            "taps": self.convolution_taps,
        }
        if self.compressed is not None:
            sizes["whole_width"] = self.compressed.width
        if self.latent is not None:
            expanded = self.latent.nope_dim + self.latent.value_dim
            sizes |= {
                "q_latent": self.latent.query_rank,
                "kv_latent": self.latent.key_rank,
                "kv_latent_and_rope": self.latent.key_rank + self.latent.rope_dim,
                "kv_expanded": self.num_heads * expanded,
                "values": self.num_heads * self.latent.value_dim,
            }
        if self.delta_net is not None:
            delta = self.delta_net
            sizes |= {
                "delta_in": delta.channels + delta.value_heads * delta.value_dim,
                "delta_gates": 2 * delta.value_heads,
                "delta_channels": delta.channels,
                "delta_taps": delta.taps,
                "delta_heads": delta.value_heads,
                "delta_value": delta.value_dim,
                "delta_values": delta.value_heads * delta.value_dim,
            }
        return sizes[symbol]

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor by its checkpoint name; tensors outside the layers come first."""
        specs: dict[str, TensorSpec] = {}
        rules = [r for r in self.family.rules if r.when is None or getattr(self, r.when)]
        for rule in rules:
            if "{layer}" not in rule.template:
                shape = tuple(self.size(symbol) for symbol in rule.shape)
                specs[rule.template] = TensorSpec(
                    rule.role, shape, rule.tensor_class, offset=rule.offset
                )
        for layer in range(self.num_layers):
            absent = "dense" if self.has_experts(layer) else "moe"
            specs |= {
                name: spec
                for rule in rules
                if "{layer}" in rule.template
                and rule.layers != absent
                and rule.mixer in (None, self.mixers[layer])
                for name, spec in self._of_layer(rule, layer)
            }
        return specs

    def _of_layer(self, rule: TensorRule, layer: int) -> Iterator[tuple[str, TensorSpec]]:
        experts = range(self.num_experts) if "{expert}" in rule.template else (None,)
        for expert in experts:
            own = {"shared": self.shared_widths[layer] or 0, "rows": sum(self.widths[layer])}
            if expert is not None:
                own["width"] = self.widths[layer][expert]
            shape = tuple(
                own[symbol] if symbol in own else self.size(symbol) for symbol in rule.shape
            )
            name = rule.template.format(layer=layer, expert=expert)
            yield (
                name,
                TensorSpec(
                    rule.role,
                    shape,
                    rule.tensor_class,
                    layer,
                    expert,
                    rule.is_wide,
                    rule.offset,
                    rule.stored,
                ),
            )

    def name(self, role: str, layer: int | None = None, expert: int | None = None) -> str:
        """Checkpoint name of a tensor, by its role."""
        for rule in self.family.rules:
            if rule.role == role:
                return rule.template.format(layer=layer, expert=expert)
        raise KeyError(role)
