"""The process that measures memory and speed of one exported model.

`python -m moe_export.ort.measuring SETUP_JSON` prints the fields of `ort.benchmark.Measured`. It
imports little before memory is counted: imports leave freed memory behind, which the session would
reuse without being counted.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from moe_export.ort.decoding import KVCache, open_cache
from moe_export.ort.device_memory import DeviceMemory
from moe_export.ort.execution import execution_path
from moe_export.ort.session import OrtModel
from moe_export.system.memory import PeakMemory, resident_bytes
from moe_export.system.processes import end_with_parent


class SpeedWords(Protocol):
    """The recipe's `validate.speed`, as far as it is needed here."""

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Numbers of sequences that are decoded together."""

    @property
    def threads(self) -> tuple[int, ...]:
        """Numbers of threads within an operator."""

    @property
    def prompt_tokens(self) -> int:
        """Length of each prompt."""

    @property
    def new_tokens(self) -> int:
        """Number of tokens decoded after it."""

    @property
    def repeats(self) -> int:
        """Number of timed runs."""


@dataclass(frozen=True)
class SpeedGrid:
    """`SpeedWords` without the recipe's classes."""

    batch_sizes: tuple[int, ...]
    threads: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Model to measure, and the settings of the measurement.

    Attributes:
        directory: folder of the exported model, named after its variant.
        provider: execution provider, `cpu` or `cuda`.
        operator: implementation of the experts, `native` or `portable`.
        cache: kind of KV cache, `growing`, `static` or `captured`.
        speed: the recipe's `validate.speed`.
    """

    directory: Path
    provider: str
    operator: str
    cache: str
    speed: SpeedWords

    def open(self, threads: int = 0) -> OrtModel:
        """Opens the model with a number of threads within an operator; 0 is ONNX Runtime's own."""
        return OrtModel(self.directory, self.provider, threads, self.operator, self.cache)

    @property
    def variant(self) -> str:
        """Name of the exported variant."""
        return self.directory.name

    def to_json(self) -> str:
        """Writes the setup for the measuring process."""
        speed = {name: getattr(self.speed, name) for name in SpeedGrid.__dataclass_fields__}
        return json.dumps(vars(self) | {"directory": str(self.directory), "speed": speed})

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """Reads what `to_json` has written."""
        content = json.loads(text)
        return cls(
            **content
            | {"directory": Path(content["directory"]), "speed": SpeedGrid(**content["speed"])}
        )


def measure(setup: Setup) -> dict[str, Any]:
    """Measures in this process, memory first while nothing else is loaded.

    Returns:
        Fields of `ort.benchmark.Measured` as plain values.
    """
    import onnxruntime  # noqa: F401, PLC0415 - loaded before memory is counted

    on_device = DeviceMemory() if setup.provider == "cuda" else None
    before = resident_bytes()
    with PeakMemory() as loading:
        model = setup.open()
    loaded_bytes = on_device.taken_bytes() if on_device is not None else 0
    _decode(open_cache(model, 1, 16), _random_prompts(model, 1, 8), 8)
    memory = {
        "variant": setup.variant,
        "provider": setup.provider,
        "load_peak_bytes": loading.peak_bytes - before,
        "steady_resident_bytes": resident_bytes() - before,
        "file_bytes": sum(path.stat().st_size for path in setup.directory.glob("model.onnx*")),
    }
    if on_device is None:
        del model
        return {"memory": memory, "speed": list(_speeds(setup))}
    on_device.taken_bytes()
    cache_bytes = _full_cache_bytes(model, setup.speed)
    del model
    speed = list(_speeds(setup, on_device.taken_bytes))
    device = {
        "device_loaded_bytes": loaded_bytes,
        "device_kv_cache_bytes": cache_bytes,
        "device_peak_bytes": on_device.peak_bytes,
    }
    return {"memory": memory | device, "speed": speed}


def _full_cache_bytes(model: OrtModel, speed: SpeedWords) -> int:
    """Returns the bytes of keys and values of the largest batch at full length."""
    return model.cache_bytes(
        max(speed.batch_sizes, default=1), speed.prompt_tokens + speed.new_tokens
    )


def _speeds(
    setup: Setup, after_run: Callable[[], object] | None = None
) -> Iterator[dict[str, Any]]:
    """Measures every number of threads with every batch size."""
    for threads in setup.speed.threads:
        # A model is closed before the next one is opened.
        for speed in _speeds_of(setup.open(threads), setup, threads):
            if after_run is not None:
                after_run()
            yield speed


def _speeds_of(model: OrtModel, setup: Setup, threads: int) -> Iterator[dict[str, Any]]:
    """Measures every batch size of an open model."""
    prompt, new = setup.speed.prompt_tokens, setup.speed.new_tokens
    for batch in setup.speed.batch_sizes:
        cache = open_cache(model, batch, prompt + new)
        prompts = _random_prompts(model, batch, prompt)
        _decode(cache, prompts, min(new, 4))  # warm-up
        runs = [_decode(cache, prompts, new) for _ in range(setup.speed.repeats)]
        yield {
            "variant": setup.variant,
            "provider": setup.provider,
            "threads": threads,
            "path": execution_path(setup.operator, setup.provider, setup.cache),
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
    """Times the prompts and the greedy decoding after them, in seconds."""
    started = time.perf_counter()
    last_BV = cache.prompt(prompts_BS)
    prefill_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(new):
        last_BV = cache.token(last_BV.argmax(-1))
    return prefill_s, time.perf_counter() - started


def _spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


if __name__ == "__main__":
    end_with_parent()
    sys.stdout.write(json.dumps(measure(Setup.from_json(sys.argv[1]))))
