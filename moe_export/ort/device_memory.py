"""Used memory of a GPU, as counted by the NVIDIA driver for all processes together."""

from __future__ import annotations

import ctypes

from moe_export.errors import DependencyError

DRIVER = "libcuda.so.1"


class DeviceMemory:
    """Counter of memory used on the first visible device, where ONNX Runtime runs.

    The constructor creates this process's context on the device, so that the context's memory is
    not counted later.

    Raises:
        DependencyError: There is no driver, or a call to it fails.
    """

    def __init__(self) -> None:
        try:
            self._driver = ctypes.CDLL(DRIVER)
        except OSError as error:
            raise DependencyError(f"device memory cannot be read: {error}") from error
        device = ctypes.c_int()
        self._context = ctypes.c_void_p()
        self._check("cuInit", ctypes.c_uint(0))
        self._check("cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
        self._check("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._start_bytes = self._used_bytes()
        self._peak_bytes = 0

    def taken_bytes(self) -> int:
        """Bytes used now, less the bytes used when this object was created.

        Other processes that allocate or free memory in between change the result.
        """
        taken = self._used_bytes() - self._start_bytes
        self._peak_bytes = max(self._peak_bytes, taken)
        return taken

    @property
    def peak_bytes(self) -> int:
        """Largest result of `taken_bytes` so far.

        ONNX Runtime keeps the memory of a run, so a call after each run sees the peak.
        """
        return self._peak_bytes

    def _used_bytes(self) -> int:
        free, total, popped = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
        self._check("cuCtxPushCurrent_v2", self._context)
        self._check("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        self._check("cuCtxPopCurrent_v2", ctypes.byref(popped))
        return total.value - free.value

    def _check(self, function: str, *arguments: object) -> None:
        try:
            result = getattr(self._driver, function)(*arguments)
        except AttributeError as error:
            raise DependencyError(
                f"device memory cannot be read: {DRIVER} has no {function}"
            ) from error
        if result != 0:
            raise DependencyError(
                f"device memory cannot be read: {function} ended with error {result}"
            )
