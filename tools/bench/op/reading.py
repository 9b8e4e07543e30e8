"""Plain reads of memory, the limit that kernels are held to."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np

READ_SOURCE = Path(__file__).with_name("read.cc")


def compiled_reader(folder: Path) -> ctypes.CDLL:
    """Compiles the reader for this processor into a folder."""
    target = folder / "libread.so"
    compiler = shutil.which("c++") or "c++"
    flags = ["-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
    subprocess.run([compiler, *flags, READ_SOURCE, "-o", target], check=True)
    reader = ctypes.CDLL(str(target))
    reader.read_bytes.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return reader


class Reading:
    """Reader of memory, in an area much larger than the caches."""

    def __init__(self, reader: ctypes.CDLL, threads: int) -> None:
        self._reader, self._threads, self._at = reader, threads, 0
        self._area = np.ones(1 << 27, np.float32)

    def read(self, size_bytes: int) -> None:
        """Reads the next bytes of the area."""
        if self._at + size_bytes > self._area.nbytes:
            self._at = 0
        self._reader.read_bytes(self._area.ctypes.data + self._at, size_bytes, self._threads)
        self._at += size_bytes // 64 * 64
