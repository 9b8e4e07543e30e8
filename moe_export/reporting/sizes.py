"""Parameters and bytes of a model that is pruned and quantized, by arithmetic on its config.

The graph is built without weights, so nothing but the config is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from moe_export.errors import RecipeError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.config import check_top_k
from moe_export.families.quantized import in_formats
from moe_export.families.states import every_head_bytes, fixed_bytes, token_bytes
from moe_export.graph import predicted_bytes
from moe_export.op.spec import QUANTIZED_FORMATS, Dtype
from moe_export.planning.shares import active_parameters, uniform_shares
from moe_export.quantization import Quantization, words_for
from moe_export.reporting.tables import Table
from moe_export.reporting.units import percent, size

KNOWN_FORMATS: tuple[str, ...] = (*get_args(Dtype), *QUANTIZED_FORMATS)
"""Dtypes of a float model, and formats of the experts of a quantized model."""

KEEPS = (1.0, 0.75, 0.5)
SIZE_FORMATS: tuple[str, ...] = ("float16", "int8", "int4")
GROUP_SIZE = 32
CONTEXTS = (4096, 32768)
"""Lengths of context, in tokens, whose KV cache is given."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of one model.

    Attributes:
        keep: Share of every expert's width that is kept.
        format: Format of the experts.
        parameters: Number of parameters of the float model.
        file_bytes: Bytes of `model.onnx.data`.
        active_bytes: Bytes of weights that a token reads, every expert chosen equally often.
        active_parameters: Parameters that a token is multiplied with; not its row of the
            embeddings.
        top_k: Routed experts that are computed for a token.
    """

    keep: float
    format: str
    parameters: int
    file_bytes: int
    active_bytes: int
    active_parameters: int
    top_k: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model at several shares and formats.

    Attributes:
        whole: Size of the unpruned model in float16, to which the others are compared: without the
            vectors, biases and condensers that tuning may have added.
        models: One entry for each share kept and format.
        cache_bytes: Bytes of the KV cache for each token of context, in float16.
        state_bytes: Bytes of the states of a sequence that do not grow with its tokens, in float16.
        every_head_bytes: Bytes of a token if keys and values of every head were kept, in float16;
            None for a model without latent attention.
    """

    whole: ModelSize
    models: tuple[ModelSize, ...]
    cache_bytes: int
    state_bytes: int
    every_head_bytes: int | None


def sizes_of(
    config: dict[str, Any],
    keeps: Sequence[float] = KEEPS,
    formats: Sequence[str] = SIZE_FORMATS,
    top_ks: Sequence[int] = (),
) -> Sizes:
    """Computes the sizes of the model of a config.

    Args:
        config: Content of a checkpoint's `config.json`.
        keeps: Shares of every expert's width to keep, each above 0 and at most 1.
        formats: Formats of the experts.
        top_ks: Experts per token; those of the config if none are given.

    Raises:
        CheckpointError: The config is of an unsupported family, or lacks a key.
        RecipeError: A format is unknown, or the model has fewer experts per token.
    """
    unknown = [name for name in formats if name not in KNOWN_FORMATS]
    if unknown:
        raise RecipeError(
            f"--formats: {unknown[0]!r} is unknown; choose among {', '.join(KNOWN_FORMATS)}"
        )
    spec = spec_of(config)
    routed = [replace(spec, top_k=_checked(spec, top_k)) for top_k in top_ks or (spec.top_k,)]
    models = [
        size for model in routed for keep in keeps for size in _sizes_of(model, keep, formats)
    ]
    [whole] = _sizes_of(replace(spec, compressed=None, condensers=None), 1.0, ["float16"])
    return Sizes(
        whole,
        tuple(models),
        token_bytes(spec, "float16"),
        fixed_bytes(spec, "float16"),
        every_head_bytes(spec, "float16"),
    )


def _checked(spec: ModelSpec, top_k: int) -> int:
    check_top_k(spec, top_k)
    return top_k


def narrowed(spec: ModelSpec, keep: float) -> ModelSpec:
    """The model with every routed expert at a share of its width.

    Args:
        spec: Model before.
        keep: Share of the width, from 0 to 1.
    """
    widths = tuple(tuple(round(width * keep) for width in layer) for layer in spec.widths)
    return replace(spec, widths=widths)


def size_table(sizes: Sizes) -> Table:
    """Sizes as text, one row for each model.

    Models with other experts per token than the config's get columns for active parameters.
    """
    head = ["removed", "parameters", "saved", "format", "bytes", "GiB", "of float16 whole"]
    cells = [_cells(model, sizes.whole) for model in sizes.models]
    if all(model.top_k == sizes.whole.top_k for model in sizes.models):
        return Table([*head, "per token"], cells)
    active = [_active_cells(model, sizes.whole) for model in sizes.models]
    more = ["top-k", "active parameters", "fewer"]
    return Table([*head, "per token", *more], [a + b for a, b in zip(cells, active, strict=True)])


def cache_sentence(sizes: Sizes, contexts: Sequence[int] = CONTEXTS) -> str:
    """Size of the KV cache in a sentence, at some lengths of context in tokens."""
    caches = ", ".join(
        f"{(sizes.cache_bytes * tokens + sizes.state_bytes) / 2**30:.2f} GiB at {tokens:,} tokens"
        for tokens in contexts
    )
    fixed = f" and {sizes.state_bytes:,} per sequence" if sizes.state_bytes else ""
    return (
        f"The KV cache comes on top, in float16 {sizes.cache_bytes:,} bytes per token of context"
        f"{fixed}: {caches}. Pruning and quantizing do not change it.{_latent_words(sizes)}"
    )


def _latent_words(sizes: Sizes) -> str:
    if sizes.every_head_bytes is None:
        return ""
    return (
        " It holds latent vectors; keys and values of every head would take "
        f"{sizes.every_head_bytes:,} bytes per token."
    )


def _sizes_of(spec: ModelSpec, keep: float, formats: Sequence[str]) -> list[ModelSize]:
    """Sizes of a model with a share of its experts' widths, one for each format."""
    model, shares = narrowed(spec, keep), uniform_shares(spec)
    parameters, active = model.parameters, _active_parameters(model)
    sizes = []
    for name in formats:
        dtype: Dtype = "float32" if name == "float32" else "float16"
        quantized = in_formats(model, _quantization(name))
        size_bytes = predicted_bytes(quantized, dtype)
        sizes.append(
            ModelSize(
                keep,
                name,
                parameters,
                size_bytes.total_bytes,
                size_bytes.active_bytes(quantized, shares),
                active,
                spec.active_experts,
            )
        )
    return sizes


def _active_parameters(spec: ModelSpec) -> int:
    active = active_parameters(spec, uniform_shares(spec))
    assert active is not None
    # The table of a tied lm_head is multiplied with; a row of embeddings is only looked up.
    looked_up = 0 if spec.tied_embeddings else spec.vocab_size * spec.hidden_size
    return round(active) - looked_up


def _quantization(name: str) -> Quantization:
    if name not in QUANTIZED_FORMATS:
        return Quantization()
    # Attention and lm_head have no nf4; int4 takes as many bits.
    dense = name if name in words_for("dense") else "int4"
    return Quantization(experts=name, dense=dense, group_size=GROUP_SIZE)


def _cells(model: ModelSize, whole: ModelSize) -> list[str]:
    return [
        percent(1 - model.keep),
        f"{model.parameters / 1e9:.4f} B",
        f"{1 - model.parameters / whole.parameters:.1%}",
        model.format,
        f"{model.file_bytes:,}",
        f"{model.file_bytes / 2**30:.2f}",
        f"{model.file_bytes / whole.file_bytes:.1%}",
        size(model.active_bytes),
    ]


def _active_cells(model: ModelSize, whole: ModelSize) -> list[str]:
    return [
        str(model.top_k),
        f"{model.active_parameters / 1e9:.3f} B",
        f"{1 - model.active_parameters / whole.active_parameters:.1%}",
    ]
