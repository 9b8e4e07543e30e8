"""Memory of a GPU that is in use, as the NVIDIA driver counts it: by all processes together."""

from __future__ import annotations

import ctypes

from moe_export.errors import DependencyError

DRIVER = "libcuda.so.1"


class DeviceMemory:
    """Asks the driver about the first visible device, where ONNX Runtime runs.

    The process's context on the device is made here if it is not there yet, so that what it takes
    is not counted as anyone's later.

    Raises:
        DependencyError: there is no driver, or it gives no answer.
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
        """In use now, less what was in use when this object was made.

        Other processes that take or give back memory meanwhile change it.
        """
        taken = self._used_bytes() - self._start_bytes
        self._peak_bytes = max(self._peak_bytes, taken)
        return taken

    @property
    def peak_bytes(self) -> int:
        """The most that `taken_bytes` gave.

        ONNX Runtime keeps what it took for a run, so asking after each run misses nothing of it.
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
