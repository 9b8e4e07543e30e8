"""Times on the device, and its copy bandwidth and matrix rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

REPEATS, IN_A_ROW = 20, 5
"""Measurements, and runs in each: several, so that the host is ahead of the device."""

WARM_UP = 3


def device_name() -> str:
    """Name of the device that is timed."""
    name: str = torch.cuda.get_device_name()
    return name


def graph_seconds(jobs: Sequence[Callable[[], Any]]) -> float:
    """Median seconds of one replay of a graph of all jobs."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for job in jobs:
            job()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for job in jobs:
            job()
    return _median_seconds(graph.replay)


def _median_seconds(job: Callable[[], Any]) -> float:
    for _ in range(WARM_UP):
        job()
    times: list[float] = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(IN_A_ROW):
            job()
        end.record()
        end.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3 / IN_A_ROW)
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes read and written per second by a copy within the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    copied_bytes: int = source.nbytes
    return 2 * copied_bytes / _median_seconds(lambda: target.copy_(source))


def matrix_rate() -> float:
    """Operations per second of a large product in bfloat16."""
    size = 8192
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    operations: int = 2 * size**3
    return operations / _median_seconds(lambda: a @ b)
