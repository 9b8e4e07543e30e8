"""Models that are not supported, and what their users can do instead.

A config names its own kind of model and of storage. Both are looked at before the weights, so that
nobody converts a checkpoint in vain.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moe_export.errors import CheckpointError
from moe_export.families.schema import shown
from moe_export.formats.block_scaled import CONFIG_KEY as FOREIGN_KEY
from moe_export.formats.block_scaled import block_of

REFUSED = {
    "gpt_oss": "its experts have biases and a gate that is cut off, its attention has sinks and a "
    "window in every other layer, and its published weights are in MXFP4",
}
"""Reasons why families of experts are not supported, by model_type."""

DENSE = frozenset(
    (
        "arcee",
        "baichuan",
        "bert",
        "bloom",
        "chatglm",
        "codegen",
        "cohere",
        "cohere2",
        "exaone",
        "exaone4",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "glm",
        "glm4",
        "gpt2",
        "gpt_bigcode",
        "gpt_neo",
        "gpt_neox",
        "gptj",
        "granite",
        "helium",
        "internlm2",
        "internlm3",
        "llama",
        "mamba",
        "mamba2",
        "ministral",
        "minicpm",
        "mistral",
        "mistral3",
        "mpt",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "opt",
        "persimmon",
        "phi",
        "phi3",
        "qwen",
        "qwen2",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3",
        "rwkv",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "t5",
        "xglm",
    )
)
"""Common model types without experts."""

_STORED = {
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "mxfp4": "MXFP4",
}
"""Name of a quantization method by its word in the config."""

_DEQUANTIZED = {
    "bitsandbytes": "load it with transformers, call dequantize() and then save_pretrained()",
    "compressed-tensors": "load it with transformers and "
    "CompressedTensorsConfig(run_compressed=False), then call save_pretrained()",
    "fp8": "load it with transformers and FineGrainedFP8Config(dequantize=True), then call "
    "save_pretrained()",
    "mxfp4": "load it with transformers and Mxfp4Config(dequantize=True), then call "
    "save_pretrained()",
}
"""Way from a quantized checkpoint to floats, by method; there is none for GPTQ and AWQ."""


def unsupported(config: dict[str, Any], known: Iterable[str]) -> CheckpointError:
    """Error for a config of a family that is not known.

    Args:
        config: Content of `config.json`.
        known: Known model types.
    """
    model_type = config.get("model_type")
    names = ", ".join(known)
    if not isinstance(model_type, str):
        return CheckpointError(
            f"config.json: model_type is {shown(model_type)}, expected one of {names}"
        )
    if model_type in REFUSED:
        return CheckpointError(
            f"config.json: model_type {model_type!r} is not supported: {REFUSED[model_type]}; "
            f"supported are {names}"
        )
    if model_type in DENSE or not _has_experts(model_type, config):
        return CheckpointError(
            f"config.json: model_type {shown(model_type)} is a dense model, it has no experts to "
            f"prune; give a Mixture-of-Experts model of one of {names}"
        )
    near = difflib.get_close_matches(model_type[:100], known, n=1, cutoff=0.0)
    return CheckpointError(
        f"config.json: model_type {shown(model_type)} is not supported; known are {names}, the "
        f"nearest is {near[0]!r}"
    )


def _has_experts(model_type: str, config: dict[str, Any]) -> bool:
    """True if the name or any key of a config, or of a config within it, speaks of experts."""
    return "moe" in model_type or "expert" in repr(config)


def require_floats(config: dict[str, Any], directory: Path) -> None:
    """Checks that no other software quantized the weights, but for FP8 with scales of blocks.

    Raises:
        CheckpointError: They are quantized; the message names the method and a way out.
    """
    entry = config.get(FOREIGN_KEY)
    if entry is None or block_of(config) is not None:
        return
    method = entry.get("quant_method") if isinstance(entry, dict) else None
    if not isinstance(method, str):
        raise CheckpointError(
            f"{directory}: {FOREIGN_KEY} in config.json is {shown(entry)}, which means quantized "
            "weights of an unknown kind; give the checkpoint in float32, float16 or bfloat16"
        )
    way = _DEQUANTIZED.get(method)
    other = f", or {way}" if way else ""
    raise CheckpointError(
        f"{directory}: the weights are quantized by {_STORED.get(method, shown(method))} "
        f"({FOREIGN_KEY} in config.json), expected float32, float16 or bfloat16; give the "
        f"checkpoint that was quantized{other}"
    )
