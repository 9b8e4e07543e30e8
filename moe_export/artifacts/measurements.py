"""`measurements.json`: memory and speed of the exported models, which no two runs repeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from moe_export.artifacts.base import JsonArtifact, Record


class Spread(Record):
    """Spread of several repeats.

    Attributes:
        min: least value.
        median: median value.
        max: greatest value.
    """

    min: float
    median: float
    max: float


class SpeedSetting(Record):
    """Conditions of a measurement of speed.

    Attributes:
        provider: execution provider, `cpu` or `cuda`.
        batch_size: number of sequences decoded together.
        threads: number of threads within an operator.
        prompt_tokens: number of tokens of each prompt.
        new_tokens: number of tokens decoded after each prompt.
    """

    provider: str
    batch_size: int
    threads: int
    prompt_tokens: int
    new_tokens: int


class Speed(Record):
    """Throughput of one variant at one setting.

    Attributes:
        variant: name of the exported variant.
        provider: execution provider, `cpu` or `cuda`.
        threads: number of threads within an operator.
        path: implementation of the experts that ran, in words; then `static KV cache` and
            `CUDA graph` if the cache did not grow at every step (`validate.cache`).
        batch_size: number of sequences decoded together.
        prompt_tokens: number of tokens of each prompt.
        new_tokens: number of tokens decoded after each prompt.
        prefill_tokens_per_s: prompt tokens of all sequences per second.
        decode_tokens_per_s: new tokens of all sequences per second.
    """

    variant: str
    provider: str
    threads: int
    path: str
    batch_size: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread

    @property
    def setting(self) -> SpeedSetting:
        """Conditions that two speeds must share to be compared."""
        return SpeedSetting(
            provider=self.provider,
            batch_size=self.batch_size,
            threads=self.threads,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
        )


class ProcessMemory(Record):
    """Memory of a process that holds one variant.

    Attributes:
        variant: name of the exported variant.
        provider: execution provider, `cpu` or `cuda`.
        load_peak_bytes: peak resident memory while the session loads, less that before loading.
        steady_resident_bytes: resident memory after a short generation, less that before loading.
        file_bytes: size of the model's files.
        device_loaded_bytes: memory in use on the GPU after loading, by all processes, less that
            before loading; absent without a GPU.
        device_kv_cache_bytes: keys and values of the largest batch at full length, counted from
            their shapes; absent without a GPU.
        device_peak_bytes: most memory in use on the GPU after any measured run, less that before
            loading; absent without a GPU.
    """

    variant: str
    provider: str
    load_peak_bytes: int
    steady_resident_bytes: int
    file_bytes: int
    device_loaded_bytes: int | None = None
    device_kv_cache_bytes: int | None = None
    device_peak_bytes: int | None = None


class Machine(Record):
    """Machine of a measurement.

    Attributes:
        cpu: name of the processor.
        cores: number of cores that the process may use.
        memory_bytes: size of physical memory.
        gpu: name of the NVIDIA GPU; None without one.
        system: name and release of the operating system, and the architecture.
    """

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str | None
    system: str


class Measurements(JsonArtifact):
    """Memory and speed of every variant on every provider.

    Attributes:
        machine: machine of the measurements.
        versions: version by package, for those that decide a result.
        speed: throughput at every setting.
        memory: memory of every variant and provider.
    """

    FILE: ClassVar[str] = "measurements.json"

    machine: Machine
    versions: dict[str, str]
    speed: tuple[Speed, ...]
    memory: tuple[ProcessMemory, ...]


def headline_setting(speed: Sequence[Speed]) -> SpeedSetting | None:
    """Returns the setting that stands for all: first provider, smallest batch, most threads."""
    if not speed:
        return None
    first = [entry for entry in speed if entry.provider == speed[0].provider]
    return min(first, key=lambda entry: (entry.batch_size, -entry.threads)).setting
