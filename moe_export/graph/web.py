"""Names and settings under which transformers.js finds an exported model."""

from __future__ import annotations

from typing import Any

from moe_export.errors import RecipeError
from moe_export.families.base import ModelSpec
from moe_export.formats import TABLE
from moe_export.op.spec import Dtype
from moe_export.quantization import Quantization

FOLDER = "onnx"
"""Folder within a model's own, where transformers.js looks for graphs."""

CONFIG_KEY = "transformers.js_config"
"""Key of `config.json` with the settings of transformers.js."""

SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}
"""Ending of a graph's name by the word of transformers.js for its dtype."""


def check_web(spec: ModelSpec) -> None:
    """Stops an export for transformers.js of a family that it has no class for.

    Raises:
        RecipeError: transformers.js has no class for the family.
    """
    if not spec.family.in_transformers_js:
        raise RecipeError(
            f"export.web: transformers.js has no class for the model type {spec.family.model_type}"
            "; leave the key out, onnxruntime-web and onnxruntime-node run the export without it"
        )


def web_dtype(quantization: Quantization, dtype: Dtype) -> str:
    """Word of transformers.js for a model's formats; the smallest code decides.

    >>> web_dtype(Quantization(experts="int4", dense="int8"), "float16")
    'q4f16'
    >>> web_dtype(Quantization(), "float32")
    'fp32'
    """
    bits = _code_bits(quantization)
    if not bits:
        return "fp16" if dtype == "float16" else "fp32"
    if min(bits) > 4:
        return "q8"
    return "q4f16" if dtype == "float16" else "q4"


def web_file(word: str) -> str:
    """Name of the graph for a word of `web_dtype`.

    >>> web_file("q4")
    'model_q4.onnx'
    """
    return f"model{SUFFIXES[word]}.onnx"


def web_config(word: str, dtype: Dtype) -> dict[str, Any]:
    """Settings of transformers.js: this dtype unless asked otherwise, and weights in a file."""
    # Version 4.0 takes the dtype of the KV cache from here, 4.3 from the graph.
    cache = {"kv_cache_dtype": {word: dtype}} if dtype == "float16" else {}
    return {"dtype": word, "use_external_data_format": {web_file(word): 1}} | cache


def _code_bits(quantization: Quantization) -> list[int]:
    formats = {*quantization.formats_of_experts, quantization.dense, quantization.embedding}
    grids = (TABLE[word].grid for word in formats if word in TABLE)
    return [grid.code_bits for grid in grids if grid is not None]
