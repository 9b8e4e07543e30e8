"""Memory and speed of one exported model, measured in a process of its own.

`python -m moe_export.ort.benchmark SETUP_JSON` prints one JSON object.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import Record
from moe_export.artifacts.measurements import ProcessMemory, Speed, Spread
from moe_export.errors import MoeExportError, ResourceError
from moe_export.op.library import describe
from moe_export.ort.decoding import KVCache, open_cache
from moe_export.ort.device_memory import DeviceMemory
from moe_export.ort.session import OrtModel
from moe_export.recipe import SpeedSettings
from moe_export.system.memory import PeakMemory, resident_bytes, tells_of_exhaustion
from moe_export.system.processes import end_with_parent, ended_by_signal

PORTABLE_PATH = "portable function body"
CACHE_WORDS = {
    "growing": "",
    "static": ", static KV cache",
    "captured": ", static KV cache, CUDA graph",
}


class Setup(Record):
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
    speed: SpeedSettings

    def open(self, threads: int = 0) -> OrtModel:
        """Opens the model with a number of threads within an operator; 0 is ONNX Runtime's own."""
        return OrtModel(self.directory, self.provider, threads, self.operator, self.cache)

    @property
    def variant(self) -> str:
        """Name of the exported variant."""
        return self.directory.name


class Measured(Record):
    """Result of the measuring process.

    Attributes:
        memory: memory of the process.
        speed: throughput by number of threads and batch size.
    """

    memory: ProcessMemory
    speed: tuple[Speed, ...]


def probe(setup: Setup) -> Measured:
    """Starts the measuring process and reads its result.

    Raises:
        ResourceError: memory ran out, or the process was killed.
        MoeExportError: the process failed; the message ends with its last line.
    """
    command = [sys.executable, "-m", "moe_export.ort.benchmark", setup.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise ended_by_signal(f"{setup.directory}: the measuring process", -done.returncode)
    if done.returncode != 0:
        if tells_of_exhaustion(done.stderr):
            raise ResourceError(
                f"{setup.directory}: memory ran out in the measuring process; free some, or lower "
                "validate.speed.batch_sizes, and run the same command again"
            )
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MoeExportError(
            f"{setup.directory}: the measuring process ended with code {done.returncode}: {last}"
        )
    return Measured.model_validate_json(done.stdout)


def measure(setup: Setup) -> Measured:
    """Measures in this process, memory first while nothing else is loaded."""
    import onnxruntime  # noqa: F401, PLC0415 - loaded before memory is counted

    on_device = DeviceMemory() if setup.provider == "cuda" else None
    before = resident_bytes()
    with PeakMemory() as loading:
        model = setup.open()
    loaded_bytes = on_device.taken_bytes() if on_device is not None else 0
    _decode(open_cache(model, 1, 16), _random_prompts(model, 1, 8), 8)
    memory = ProcessMemory(
        variant=setup.variant,
        provider=setup.provider,
        load_peak_bytes=loading.peak_bytes - before,
        steady_resident_bytes=resident_bytes() - before,
        file_bytes=sum(path.stat().st_size for path in setup.directory.glob("model.onnx*")),
    )
    if on_device is None:
        del model
        return Measured(memory=memory, speed=tuple(_speeds(setup)))
    on_device.taken_bytes()
    cache_bytes = _full_cache_bytes(model, setup.speed)
    del model
    speed = tuple(_speeds(setup, on_device.taken_bytes))
    device = {
        "device_loaded_bytes": loaded_bytes,
        "device_kv_cache_bytes": cache_bytes,
        "device_peak_bytes": on_device.peak_bytes,
    }
    return Measured(memory=memory.model_copy(update=device), speed=speed)


def execution_path(operator: str, provider: str = "cpu", cache: str = "growing") -> str:
    """Describes the implementation of the experts and, unless it grows, the KV cache."""
    experts = PORTABLE_PATH
    if operator == "native":
        experts = f"native library ({describe().kernel if provider == 'cpu' else provider})"
    return experts + CACHE_WORDS[cache]


def _full_cache_bytes(model: OrtModel, speed: SpeedSettings) -> int:
    """Returns the bytes of keys and values of the largest batch at full length."""
    return model.cache_bytes(
        max(speed.batch_sizes, default=1), speed.prompt_tokens + speed.new_tokens
    )


def _speeds(setup: Setup, after_run: Callable[[], object] | None = None) -> Iterator[Speed]:
    """Measures every number of threads with every batch size."""
    for threads in setup.speed.threads:
        # A model is closed before the next one is opened.
        for speed in _speeds_of(setup.open(threads), setup, threads):
            if after_run is not None:
                after_run()
            yield speed


def _speeds_of(model: OrtModel, setup: Setup, threads: int) -> Iterator[Speed]:
    """Measures every batch size of an open model."""
    prompt, new = setup.speed.prompt_tokens, setup.speed.new_tokens
    for batch in setup.speed.batch_sizes:
        cache = open_cache(model, batch, prompt + new)
        prompts = _random_prompts(model, batch, prompt)
        _decode(cache, prompts, min(new, 4))  # warm-up
        runs = [_decode(cache, prompts, new) for _ in range(setup.speed.repeats)]
        yield Speed(
            variant=setup.variant,
            provider=setup.provider,
            threads=threads,
            path=execution_path(setup.operator, setup.provider, setup.cache),
            batch_size=batch,
            prompt_tokens=prompt,
            new_tokens=new,
            prefill_tokens_per_s=_spread([batch * prompt / s for s, _ in runs]),
            decode_tokens_per_s=_spread([batch * new / s for _, s in runs]),
        )


def _random_prompts(model: OrtModel, batch: int, prompt: int) -> NDArray[np.int64]:
    vocabulary = model.session.get_outputs()[0].shape[-1]
    return np.random.default_rng(0).integers(0, vocabulary, (batch, prompt))


def _decode(cache: KVCache, prompts_BS: NDArray[np.int64], new: int) -> tuple[float, float]:
    """Times the prompts and the greedy decoding after them, in seconds."""
    started = time.perf_counter()
    last_BV = cache.prompt(prompts_BS)[:, -1]
    prefill_s = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(new):
        last_BV = cache.token(last_BV.argmax(-1))
    return prefill_s, time.perf_counter() - started


def _spread(values: list[float]) -> Spread:
    return Spread(min=min(values), median=statistics.median(values), max=max(values))


if __name__ == "__main__":
    end_with_parent()
    measured = measure(Setup.model_validate_json(sys.argv[1]))
    sys.stdout.write(measured.model_dump_json())
