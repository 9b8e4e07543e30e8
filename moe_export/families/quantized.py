"""Quantized form of a model: its sizes, its config, and the source of each tensor.

A quantized lm_head is a matrix of its own. Where the logits come from the embedding's table, the
head is rounded from that table, which keeps a format of its own. From there on the model is one
whose head is not tied.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moe_export.errors import RecipeError
from moe_export.families.base import ModelSpec
from moe_export.quantization import QUANTIZATION_KEY, Quantization


def in_formats(spec: ModelSpec, quantization: Quantization) -> ModelSpec:
    """The model in other formats; a quantized lm_head is no longer tied to the embedding.

    Args:
        spec: Model whose lm_head is in floats.
        quantization: Formats of the tensors.

    Raises:
        RecipeError: The embedding is to be quantized, and is the lm_head in floats too.
    """
    is_tied = spec.tied_embeddings and quantization.format_of("lm_head") is None
    if is_tied and quantization.format_of("embedding") is not None:
        raise RecipeError(
            f"quantize.embedding is {quantization.embedding}, but the lm_head of this "
            f"{spec.family.model_type} is the same table and stays in floats; give "
            "quantize.lm_head a quantized format too, or leave embedding out"
        )
    return replace(spec, quantization=quantization, tied_embeddings=is_tied)


def quantized_config(
    config: dict[str, Any], spec: ModelSpec, quantized: ModelSpec
) -> dict[str, Any]:
    """Config of a quantized checkpoint.

    Args:
        config: Content of the float checkpoint's `config.json`.
        spec: Its sizes.
        quantized: Result of `in_formats`.
    """
    is_untied = spec.tied_embeddings and not quantized.tied_embeddings
    untied = dict.fromkeys(spec.family.tie_keys if is_untied else (), False)
    return config | untied | {QUANTIZATION_KEY: quantized.quantization.as_config()}


def rounded_from(spec: ModelSpec, name: str) -> str:
    """Name of the float tensor that a tensor of the quantized model is made from.

    Args:
        spec: Sizes of the float model.
        name: Name in the quantized model; that of the lm_head may be absent from the float one.
    """
    return name if name in spec.tensors else spec.name("embedding")
