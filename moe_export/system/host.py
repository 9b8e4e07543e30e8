"""Calls to the operating system that Linux, macOS and Windows answer differently.

Models run on all three. Figures that a system does not tell are None; calibrating, pruning and
reporting need them and are for Linux.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from pathlib import Path
from typing import IO, Any

SYSTEM: str = sys.platform
"""Name of the operating system."""

PROC = Path("/proc")
"""Folder in which Linux tells of processes and memory; absent elsewhere."""


def usable_cores() -> list[int]:
    """Numbers of the logical processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return sorted(affinity(0)) if affinity is not None else list(range(os.cpu_count() or 1))


def physical_bytes() -> int | None:
    """Memory of the machine."""
    if SYSTEM == "win32":
        return _windows_memory("total")
    sysconf = getattr(os, "sysconf", None)
    return None if sysconf is None else sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")


def available_bytes() -> int | None:
    """Memory that is free or can be freed at once."""
    if SYSTEM == "win32":
        return _windows_memory("available")
    return _kib(PROC / "meminfo", "MemAvailable")


def process_bytes(field: str) -> int | None:
    """A figure of this process's memory by its name in proc(5), such as `VmRSS` or `VmHWM`."""
    return _kib(PROC / "self" / "status", field)


def smaps_bytes(field: str) -> int | None:
    """A figure of all mappings of this process by its name in proc(5), such as `Pss`."""
    return _kib(PROC / "self" / "smaps_rollup", field)


def peak_bytes() -> int:
    """Peak resident memory of this process since it began; 0 if the system does not tell."""
    try:
        import resource  # noqa: PLC0415 - absent on Windows
    except ImportError:
        return 0
    unit = 1 if SYSTEM == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def trim_heap() -> None:
    """Returns freed memory to the system where the C library is glibc, which would keep it."""
    if SYSTEM == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if malloc_trim is not None:
            malloc_trim(0)


def lock(file: IO[Any]) -> None:
    """Locks a file for this process until it is closed.

    Raises:
        OSError: Another process has locked it.
    """
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows
    except ImportError:
        import msvcrt  # noqa: PLC0415 - Windows's own

        windows: Any = msvcrt
        windows.locking(file.fileno(), windows.LK_NBLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def umask() -> int:
    """Rights that new files of this process lack; those of others where the system tells nothing.

    `os.umask` can only be read by changing it, for all threads of the process.
    """
    try:
        text = (PROC / "self" / "status").read_text(encoding="utf-8")
    except OSError:
        return 0o077
    match = re.search(r"^Umask:\s+(\d+)", text, re.MULTILINE)
    return int(match[1], 8) if match else 0o077


def _kib(path: Path, field: str) -> int | None:
    """A line `field: N kB` of a file of Linux, in bytes."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) * 1024 if match else None


class _MemoryStatus(ctypes.Structure):
    """Structure MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 5),
    )


def _windows_memory(field: str) -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 - unknown to types on Linux
    if not kernel.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(getattr(status, field))
