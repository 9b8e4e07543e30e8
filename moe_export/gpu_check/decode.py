"""Speed of decoding and device memory of one exported model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.ort.decoding import open_cache
from moe_export.ort.device_memory import DeviceMemory
from moe_export.ort.execution import execution_path
from moe_export.ort.session import NO_GRAPH, OrtModel

PROMPT_TOKENS, NEW_TOKENS = 8, 48
WARM_UP, REPEATS = 4, 50


class Watched(OrtModel):
    """A model whose last run can be repeated."""

    def run(self, binding: Any, graph: int = NO_GRAPH, *, shrink: bool = False) -> None:
        """Runs the model and remembers the call."""
        self._last = (binding, graph)
        super().run(binding, graph, shrink=shrink)

    def again(self) -> None:
        """Repeats the last run, at the same place of the cache."""
        super().run(*self._last)


def measure(place: Path, provider: str, batches: Sequence[int]) -> list[dict[str, Any]]:
    """Decodes random prompts of each batch size with the steps of `validate`, in one session.

    On CUDA steps are captured; elsewhere the cache is static.

    Args:
        place: Folder of the exported model.
        provider: `cuda`, or `cpu` in tests.
        batches: Batch sizes.

    Returns:
        A row for each batch size: `token_us`, the median time of a step including the choice of the
        tokens on the host; `step_us`, of the step alone; tokens/s by the former; bytes of the KV
        cache; and on CUDA the device's memory after loading and at its peak so far.
    """
    on_device = DeviceMemory() if provider == "cuda" else None
    cache = "captured" if provider == "cuda" else "static"
    model = Watched(place, provider, cache=cache)
    loaded_bytes = on_device.taken_bytes() if on_device is not None else 0
    rows = []
    for batch in batches:
        row: dict[str, Any] = {"batch": batch, **_times(model, batch)}
        row["decode_tokens_per_s"] = batch / row["token_us"] * 1e6
        if on_device is not None:
            on_device.taken_bytes()
            row["device_loaded_bytes"] = loaded_bytes
            row["device_peak_bytes"] = on_device.peak_bytes
        row["kv_cache_bytes"] = model.cache_bytes(batch, PROMPT_TOKENS + NEW_TOKENS)
        rows.append(row | {"path": execution_path("native", provider, cache)})
    return rows


def _times(model: Watched, batch: int) -> dict[str, float]:
    vocabulary = model.session.get_outputs()[0].shape[-1]
    prompts_BS = np.random.default_rng(0).integers(0, vocabulary, (batch, PROMPT_TOKENS))
    cache = open_cache(model, batch, PROMPT_TOKENS + NEW_TOKENS)
    last_BV = cache.prompt(prompts_BS)
    of_tokens = []
    for _ in range(NEW_TOKENS):
        started = time.perf_counter()
        last_BV = cache.token(last_BV.argmax(-1))
        of_tokens.append(time.perf_counter() - started)
    of_steps = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        model.again()
        of_steps.append(time.perf_counter() - started)
    return {
        "token_us": statistics.median(of_tokens[WARM_UP:]) * 1e6,
        "step_us": statistics.median(of_steps) * 1e6,
    }
