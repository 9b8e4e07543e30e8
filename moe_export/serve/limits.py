"""Limits that a server keeps, checked against the model and the memory of the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from moe_export.errors import ArtifactError, RecipeError, ResourceError
from moe_export.ort.session import OrtModel
from moe_export.system.host import available_bytes

DEFAULT_CONTEXT = 4096
"""Tokens of prompt and answer unless asked for otherwise; a longer context takes a larger cache."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        rows: Largest number of sequences that share a step.
        context: Largest number of tokens of a sequence, prompt and answer together.
        queue: Largest number of sequences that wait for a row.
        chunk: Largest number of prompt tokens in one step; between chunks, other rows go on.
        body_bytes: Largest size of a request's body in bytes.
        cache_bytes: Memory that keys and values may take, in bytes; half of what is free if None.
        speculate: True if a greedy sequence that is alone takes several tokens in a step.
        grace_s: Time in seconds that running requests get to finish after a signal to stop.
    """

    rows: int = 16
    context: int = DEFAULT_CONTEXT
    queue: int = 256
    chunk: int = 256
    body_bytes: int = 4 << 20
    cache_bytes: int | None = None
    speculate: bool = False
    grace_s: int = 30


def context_of(directory: Path, asked: int | None) -> int:
    """Context of a server in tokens: what is asked for, or the smaller of default and model's.

    Args:
        directory: Folder of the exported model.
        asked: Context that the user asks for; None for the default.

    Raises:
        ArtifactError: `genai_config.json` is missing or damaged.
        RecipeError: The model has fewer positions than asked for.
    """
    path = directory / "genai_config.json"
    try:
        positions = int(json.loads(path.read_text(encoding="utf-8"))["model"]["context_length"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} has no context_length ({error}); run the export stage again"
        ) from error
    if asked is not None and asked > positions:
        raise RecipeError(
            f"--context {asked} is more than the {positions} positions of {directory}; lower it"
        )
    return asked or min(DEFAULT_CONTEXT, positions)


def check_cache(model: OrtModel, limits: Limits) -> int:
    """Returns the bytes of all keys, values and states.

    Raises:
        ResourceError: They are more than the limit, or than half of the free memory.
    """
    needed = model.cache_bytes(limits.rows, limits.context)
    allowed = limits.cache_bytes
    if allowed is None:
        # The memory of a GPU is checked by ONNX Runtime, which allocates the whole cache at once.
        allowed = _free_bytes() // 2 if model.provider == "cpu" else needed
    if needed > allowed:
        raise ResourceError(
            f"the KV cache of {limits.rows} rows of {limits.context} tokens takes "
            f"{needed >> 20} MiB, and {allowed >> 20} MiB are allowed; lower --rows or --context, "
            "or raise --cache-mib"
        )
    return needed


def _free_bytes() -> int:
    """Memory that is free or can be freed at once, as counted by the kernel."""
    found = available_bytes()
    if found is None:
        raise ResourceError("this system does not tell how much memory is free; give --cache-mib")
    return found
