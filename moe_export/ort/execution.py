"""Words for the implementation that runs the experts of a model."""

from __future__ import annotations

from moe_export.op.library import describe

PORTABLE_PATH = "portable function body"
PLAIN_PATH = "native library (portable)"
"""The library on a processor that it has no kernels for, or asked to run as on one."""

PLAIN_KERNELS = (
    "The library's portable kernels are plain C++; models in integer formats are likely faster "
    "without the library, as standard operators."
)
"""Sentence about `PLAIN_PATH`."""

CACHE_WORDS = {
    "growing": "",
    "static": ", static KV cache",
    "captured": ", static KV cache, CUDA graph",
}


def execution_path(operator: str, provider: str = "cpu", cache: str = "growing") -> str:
    """Describes the implementation of the experts and, unless it grows, the KV cache."""
    experts = PORTABLE_PATH
    if operator == "native":
        experts = f"native library ({describe().kernel if provider == 'cpu' else provider})"
    return experts + CACHE_WORDS[cache]
