"""Parameters and bytes of a model that is pruned and quantized, by arithmetic on its config.

The graph is built without weights, so nothing but the config is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from moe_export.errors import RecipeError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.states import fixed_bytes, token_bytes
from moe_export.graph import predicted_bytes
from moe_export.op.spec import QUANTIZED_FORMATS, Dtype
from moe_export.quantization import Quantization, words_for
from moe_export.reporting.tables import Table
from moe_export.reporting.units import percent, size

KNOWN_FORMATS: tuple[str, ...] = (*get_args(Dtype), *QUANTIZED_FORMATS)
"""Dtypes of a float model, and formats of the experts of a quantized model."""

KEEPS = (1.0, 0.75, 0.5)
SIZE_FORMATS: tuple[str, ...] = ("float16", "int8", "int4")
GROUP_SIZE = 32
CONTEXTS = (4096, 8192)
"""Lengths of context, in tokens, whose KV cache is given."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of one model.

    Attributes:
        keep: Share of every expert's width that is kept.
        format: Format of the experts.
        parameters: Number of parameters.
        file_bytes: Bytes of `model.onnx.data`.
        active_bytes: Bytes of weights that a token reads, every expert chosen equally often.
    """

    keep: float
    format: str
    parameters: int
    file_bytes: int
    active_bytes: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model at several shares and formats.

    Attributes:
        whole: Size of the unpruned model in float16, to which the others are compared.
        models: One entry for each share kept and format.
        cache_bytes: Bytes of the KV cache for each token of context, in float16.
        state_bytes: Bytes of the states of a sequence that do not grow with its tokens, in float16.
    """

    whole: ModelSize
    models: tuple[ModelSize, ...]
    cache_bytes: int
    state_bytes: int


def sizes_of(
    config: dict[str, Any],
    keeps: Sequence[float] = KEEPS,
    formats: Sequence[str] = SIZE_FORMATS,
) -> Sizes:
    """Computes the sizes of the model of a config.

    Args:
        config: Content of a checkpoint's `config.json`.
        keeps: Shares of every expert's width to keep, each above 0 and at most 1.
        formats: Formats of the experts.

    Raises:
        CheckpointError: The config is of an unsupported family, or lacks a key.
        RecipeError: A format is unknown.
    """
    unknown = [name for name in formats if name not in KNOWN_FORMATS]
    if unknown:
        raise RecipeError(
            f"--formats: {unknown[0]!r} is unknown; choose among {', '.join(KNOWN_FORMATS)}"
        )
    spec = spec_of(config)
    models = tuple(_size_of(spec, keep, name) for keep in keeps for name in formats)
    return Sizes(
        _size_of(spec, 1.0, "float16"),
        models,
        token_bytes(spec, "float16"),
        fixed_bytes(spec, "float16"),
    )


def narrowed(spec: ModelSpec, keep: float) -> ModelSpec:
    """The model with every routed expert at a share of its width.

    Args:
        spec: Model before.
        keep: Share of the width, from 0 to 1.
    """
    widths = tuple(tuple(round(width * keep) for width in layer) for layer in spec.widths)
    return replace(spec, widths=widths)


def size_table(sizes: Sizes) -> Table:
    """Sizes as text, one row for each model."""
    head = ["removed", "parameters", "saved", "format", "bytes", "GiB", "of float16 whole"]
    return Table([*head, "per token"], [_cells(model, sizes.whole) for model in sizes.models])


def cache_sentence(sizes: Sizes) -> str:
    """Size of the KV cache in a sentence."""
    caches = ", ".join(
        f"{(sizes.cache_bytes * tokens + sizes.state_bytes) / 2**30:.2f} GiB at {tokens:,} tokens"
        for tokens in CONTEXTS
    )
    fixed = f" and {sizes.state_bytes:,} per sequence" if sizes.state_bytes else ""
    return (
        f"The KV cache comes on top, in float16 {sizes.cache_bytes:,} bytes per token of context"
        f"{fixed}: {caches}. Pruning and quantizing do not change it."
    )


def _size_of(spec: ModelSpec, keep: float, name: str) -> ModelSize:
    model = replace(narrowed(spec, keep), quantization=_quantization(name))
    dtype: Dtype = "float32" if name == "float32" else "float16"
    size_bytes = predicted_bytes(model, dtype)
    equally_E = np.full(spec.num_experts, spec.top_k / spec.num_experts)
    active_bytes = size_bytes.active_bytes(model, [equally_E] * spec.num_layers)
    return ModelSize(keep, name, model.parameters, size_bytes.total_bytes, active_bytes)


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
