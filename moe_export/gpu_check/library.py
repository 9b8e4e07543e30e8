"""The packaged kernels on the device, through the native library's plain C interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe_export.op.library import library_path
from moe_export.op.scales import TokenScales
from moe_export.op.triton.build import SCALED_X_DTYPE
from moe_export.testing.cases import (
    CASES,
    FACTOR_CASES,
    Case,
    Inputs,
    Kind,
    inputs_of,
)
from moe_export.testing.cuda_kinds import PACKAGED_KINDS
from moe_export.testing.cuda_library import CudaLayer, DeviceMemory
from moe_export.testing.executors import run_reference
from moe_export.testing.tolerance import error_bound

REPEATS = (1, 9, 129)
"""Repetitions of a case's tokens: once, and so often that both kinds of tiles run."""

MOST_TOKENS = 1200


class TorchMemory:
    """Device memory that torch allocates."""

    def __init__(self) -> None:
        self._held: dict[int, torch.Tensor] = {}

    def allocate(self, size: int) -> int:
        """Allocates bytes that hold NaN; returns their address."""
        memory = torch.full((size,), 255, dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        pointer: int = memory.data_ptr()
        self._held[pointer] = memory
        return pointer

    def free(self, pointer: int) -> None:
        """Frees an allocation."""
        del self._held[pointer]

    def write(self, pointer: int, data: bytes) -> None:
        """Copies bytes to the device and waits for the copy."""
        if data:
            part = self._part(pointer, len(data))
            part.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            torch.cuda.synchronize()

    def read(self, pointer: int, size: int) -> bytes:
        """Copies bytes from the device once its kernels are done."""
        torch.cuda.synchronize()
        data: bytes = self._part(pointer, size).cpu().numpy().tobytes() if size else b""
        return data

    def _part(self, pointer: int, size: int) -> torch.Tensor:
        start = max(first for first in self._held if first <= pointer)
        return self._held[start][pointer - start : pointer - start + size]


def conformance() -> list[dict[str, Any]]:
    """Checks every case in every packaged kind, by rows and tiles; gives one row for each kind."""
    torch.zeros(1, device="cuda")  # makes the context current that the library takes
    memory = TorchMemory()
    return [row_of(library_path(), memory, kind, cases_of(kind)) for kind in PACKAGED_KINDS]


def cases_of(kind: Kind) -> tuple[Case, ...]:
    """Cases that the packaged kernels run; factors per token where x is float16."""
    return (*CASES, *FACTOR_CASES) if kind[0] == SCALED_X_DTYPE else CASES


def row_of(
    library: Path, memory: DeviceMemory, kind: Kind, cases: Sequence[Case]
) -> dict[str, Any]:
    """Row of one kind: the largest error over its bound, and the cases that failed.

    A case fails if an error exceeds its bound, or if a second run gives other bits.
    """
    worst, failures = 0.0, []
    for case in cases:
        inputs = inputs_of(case, *kind)
        layer = CudaLayer(library, memory, inputs)
        for times in REPEATS:
            if times > 1 and not 0 < case.tokens * times <= MOST_TOKENS:
                continue
            repeated = _repeated(inputs, times)
            bound, expected = error_bound(repeated), run_reference(repeated)
            y, again = layer.run(repeated), layer.run(repeated)
            error = np.abs(y.astype(np.float64) - expected.astype(np.float64))
            worst = max(worst, float((error / np.maximum(bound, 1e-300)).max(initial=0)))
            if not (error <= bound).all() or not np.array_equal(y, again):
                failures.append(f"{case.name}/{times}")
        layer.destroy()
    return {
        "kind": " ".join(map(str, kind)),
        "worst_error_of_bound": worst,
        "failed": " ".join(failures),
        "held": not failures,
    }


def _repeated(inputs: Inputs, times: int) -> Inputs:
    def tiled(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.tile(array, (times, 1))

    return replace(
        inputs,
        x=tiled(inputs.x),
        expert_indices=tiled(inputs.expert_indices),
        routing_weights=tiled(inputs.routing_weights),
        shared_weight=None if inputs.shared_weight is None else tiled(inputs.shared_weight),
        scales=None if inputs.scales is None else _tiled_scales(inputs.scales, tiled),
    )


def _tiled_scales(
    scales: TokenScales, tiled: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> TokenScales:
    factors = {name: tiled(array) for name, array in scales.by_name.items() if name != "units"}
    return TokenScales(**factors, units=scales.units)
