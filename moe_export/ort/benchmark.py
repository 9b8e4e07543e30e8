"""Memory and speed of one exported model, measured in a process of its own.

Run as `python -m moe_export.ort.benchmark DIRECTORY PROVIDER OPERATOR CACHE SPEED_JSON`; prints
one JSON object.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import MoeExportError
from moe_export.op.library import describe
from moe_export.ort.decoding import KVCache, open_cache
from moe_export.ort.device_memory import DeviceMemory
from moe_export.ort.session import OrtModel
from moe_export.system.memory import PeakMemory, resident_bytes

PORTABLE_PATH = "portable function body"
CACHE_WORDS = {
    "growing": "",
    "static": ", static KV cache",
    "captured": ", static KV cache, CUDA graph",
}


def probe(
    directory: Path, provider: str, operator: str, cache: str, speed: dict[str, Any]
) -> dict[str, Any]:
    """Starts the measuring process and reads its result.

    Args:
        directory: holds `model.onnx`.
        provider: `cpu` or `cuda`.
        operator: `native` or `portable`.
        cache: `growing`, `static` or `captured`.
        speed: the recipe's `validate.speed`, as plain values.

    Raises:
        MoeExportError: the process failed; its last words are in the message.
    """
    arguments = [str(directory), provider, operator, cache, json.dumps(speed)]
    command = [sys.executable, "-m", "moe_export.ort.benchmark", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MoeExportError(
            f"{directory}: the measuring process ended with code {done.returncode}: {last}"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(
    directory: Path, provider: str, operator: str, cache: str, speed: dict[str, Any]
) -> dict[str, Any]:
    """Measures in this process: memory first, while nothing else is loaded."""
    import onnxruntime  # noqa: F401, PLC0415 - loaded before memory is counted

    on_device = DeviceMemory() if provider == "cuda" else None
    before = resident_bytes()
    with PeakMemory() as loading:
        model = OrtModel(directory, provider, operator=operator, cache=cache)
    loaded_bytes = on_device.taken_bytes() if on_device is not None else 0
    _decode(open_cache(model, 1, 16), _random_prompts(model, 1, 8), 8)
    memory = {
        "load_peak_bytes": loading.peak_bytes - before,
        "steady_resident_bytes": resident_bytes() - before,
        "file_bytes": sum(p.stat().st_size for p in directory.glob("model.onnx*")),
    }
    if on_device is None:
        del model
        return {"memory": memory, "speed": _speeds(directory, provider, operator, cache, speed)}
    on_device.taken_bytes()
    tokens = speed["prompt_tokens"] + speed["new_tokens"]
    memory["device_loaded_bytes"] = loaded_bytes
    memory["device_kv_cache_bytes"] = model.cache_bytes(
        max(speed["batch_sizes"], default=1), tokens
    )
    del model
    speeds = _speeds(directory, provider, operator, cache, speed, on_device.taken_bytes)
    memory["device_peak_bytes"] = on_device.peak_bytes
    return {"memory": memory, "speed": speeds}


def execution_path(operator: str, provider: str = "cpu", cache: str = "growing") -> str:
    """What runs the experts and, unless it grows, how the KV cache is held, in words."""
    experts = PORTABLE_PATH
    if operator == "native":
        experts = f"native library ({describe().kernel if provider == 'cpu' else provider})"
    return experts + CACHE_WORDS[cache]


def _speeds(
    directory: Path,
    provider: str,
    operator: str,
    cache: str,
    speed: dict[str, Any],
    after_run: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    results = []
    for threads in speed["threads"]:
        # A model is gone before the next one is opened.
        for found in _speeds_of(OrtModel(directory, provider, threads, operator, cache), speed):
            if after_run is not None:
                after_run()
            path = execution_path(operator, provider, cache)
            results.append({"threads": threads, "path": path, **found})
    return results


def _speeds_of(model: OrtModel, speed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    prompt, new = speed["prompt_tokens"], speed["new_tokens"]
    for batch in speed["batch_sizes"]:
        held = open_cache(model, batch, prompt + new)
        prompts = _random_prompts(model, batch, prompt)
        _decode(held, prompts, min(new, 4))  # warm-up
        runs = [_decode(held, prompts, new) for _ in range(speed["repeats"])]
        yield {
            "batch_size": batch,
            "prompt_tokens": prompt,
            "new_tokens": new,
            "prefill_tokens_per_s": _spread([batch * prompt / s for s, _ in runs]),
            "decode_tokens_per_s": _spread([batch * new / s for _, s in runs]),
        }


def _random_prompts(model: OrtModel, batch: int, prompt: int) -> NDArray[np.int64]:
    vocabulary = model.session.get_outputs()[0].shape[-1]
    return np.random.default_rng(0).integers(0, vocabulary, (batch, prompt))


def _decode(cache: KVCache, prompts_BS: NDArray[np.int64], new: int) -> tuple[float, float]:
    """Seconds of the prompts, and of greedy decoding after them."""
    started = time.perf_counter()
    last_BV = cache.prompt(prompts_BS)[:, -1]
    prefill_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(new):
        last_BV = cache.token(last_BV.argmax(-1))
    return prefill_s, time.perf_counter() - started


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


if __name__ == "__main__":
    _, folder, provider_word, operator_word, cache_word, settings = sys.argv
    found = measure(Path(folder), provider_word, operator_word, cache_word, json.loads(settings))
    sys.stdout.write(json.dumps(found))
