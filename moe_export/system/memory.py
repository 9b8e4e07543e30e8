"""Resident memory of this process, as counted by the kernel."""

from __future__ import annotations

import gc
from types import TracebackType
from typing import Self

from moe_export.system.host import PROC, peak_bytes, process_bytes, trim_heap

_WORDS = (
    "MemoryError",  # Python
    "can't allocate memory",  # torch on the CPU
    "not enough memory: you tried to allocate",  # torch on Windows and macOS
    "out of memory",  # CUDA
    "bad_alloc",  # the C++ library, in torch and ONNX Runtime
    "Failed to allocate memory",  # ONNX Runtime
)
"""Words in messages of libraries when memory runs out."""


def tells_of_exhaustion(message: str) -> bool:
    """True if a message of Python, torch or ONNX Runtime says that memory ran out."""
    return any(word in message for word in _WORDS)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _field("VmRSS")


def release() -> None:
    """Collects garbage and returns freed memory to the system."""
    gc.collect()
    trim()


def trim() -> None:
    """Returns freed memory to the system, which glibc would otherwise keep; collects no garbage."""
    trim_heap()


class PeakMemory:
    """Peak resident memory within a `with` block; memory freed before does not count.

    If the kernel does not allow the peak to be reset, the peak of the whole process is used, which
    is never lower.
    """

    peak_bytes = 0

    def __enter__(self) -> Self:
        release()
        try:
            (PROC / "self" / "clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        except OSError:
            self.peak_bytes = peak_bytes()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.peak_bytes = max(self.peak_bytes, _field("VmHWM"))


def _field(name: str) -> int:
    # Other systems tell no more than the peak since the process began.
    found = process_bytes(name)
    return peak_bytes() if found is None else found
