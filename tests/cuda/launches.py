"""Carries out what a program launched on the stand-in driver, by Triton's interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moe_export.op.triton import build, package
from moe_export.op.triton.build import CUBINS

TYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "u8": torch.uint8,
    "i32": torch.int32,
    "i64": torch.int64,
}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel that the driver was asked for."""

    key: str
    grid: tuple[int, int]
    threads: int
    shared_bytes: int
    stream: int | None


class StandIn:
    """The stand-in driver of this process, which has to be loaded before anything looks for one.

    Args:
        path: File of the compiled `fake_cuda.cc`.
        architecture: Compute capability of the expected kernels, such as 90.
    """

    def __init__(self, path: Path, architecture: int = 90) -> None:
        self._library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        self._library.fake_cuda_allocated.restype = ctypes.c_size_t
        content = (CUBINS / f"sm_{architecture}.bin").read_bytes()
        self._keys = {kernel.code: kernel.key for kernel in package.decode(content)}
        self._variants = {variant.key: variant for variant in build.variants(architecture)}
        self.launches: list[Launch] = []
        self._forgotten = 0
        signature = ctypes.CFUNCTYPE(
            *(ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_uint),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p),
            ctypes.POINTER(ctypes.c_void_p),
        )
        self._callback = signature(self._on_launch)
        self._library.fake_cuda_on_launch(self._callback)

    def configure(
        self,
        driver_version: int = 13000,
        capability: tuple[int, int] = (9, 0),
        memory_bytes: int = 1 << 40,
    ) -> None:
        """Sets the version of the driver and the facts of its device."""
        self._library.fake_cuda_configure(
            driver_version, *capability, ctypes.c_size_t(memory_bytes)
        )

    def forget(self, launches: int) -> None:
        """Does not carry out the next launches."""
        self._forgotten = launches

    def leave_context(self) -> None:
        """No context is current from now on."""
        self._library.fake_cuda_leave_context()

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the device's memory that are allocated."""
        found: int = self._library.fake_cuda_allocated()
        return found

    def only_allocation(self) -> bytes:
        """All that the device holds, which has to be one allocation."""
        pointer, size = ctypes.c_uint64(), ctypes.c_size_t()
        count = self._library.fake_cuda_allocation(ctypes.byref(pointer), ctypes.byref(size))
        assert count == 1
        return ctypes.string_at(pointer.value or 0, size.value)

    def allocate(self, size: int) -> int:
        """Memory of the device."""
        pointer = ctypes.c_uint64()
        assert self._library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)) == 0
        return pointer.value

    def free(self, pointer: int) -> None:
        """Gives memory of the device back."""
        assert self._library.cuMemFree_v2(ctypes.c_uint64(pointer)) == 0

    def write(self, pointer: int, data: bytes) -> None:
        """The device's memory is the host's."""
        ctypes.memmove(pointer, data, len(data))

    def read(self, pointer: int, size: int) -> bytes:
        """Likewise."""
        return ctypes.string_at(pointer, size)

    def _on_launch(self, *facts: Any) -> int:
        image, size, name, grid_x, grid_y, threads, shared_bytes, stream, arguments = facts
        key = self._keys[ctypes.string_at(image, size)]
        assert key.split(".")[0] == name.decode()
        self.launches.append(Launch(key, (grid_x, grid_y), threads, shared_bytes, stream))
        if self._forgotten:
            self._forgotten -= 1
        else:
            self._interpret(key, (grid_x, grid_y), arguments)
        return 0

    def _interpret(self, key: str, grid: tuple[int, int], arguments: Any) -> None:
        variant = self._variants[key]
        types = build.signature(variant)
        given = [name for name, kind in types.items() if kind != "constexpr"]
        values = [_value(types[name], arguments[i]) for i, name in enumerate(given)]
        # After its own arguments a kernel takes two pointers, both null.
        for i in (len(given), len(given) + 1):
            assert ctypes.c_uint64.from_address(arguments[i]).value == 0
        kernel: Callable[..., None] = variant.kernel[grid]
        kernel(**dict(zip(given, values, strict=True)), **variant.constants)


def _value(kind: str, address: int) -> Any:
    if not kind.startswith("*"):
        return ctypes.c_int32.from_address(address).value
    pointer = ctypes.c_uint64.from_address(address).value
    assert pointer != 0
    # The kernel reaches beyond these bytes: the interpreter knows only where a tensor begins.
    memory = (ctypes.c_uint8 * 16).from_address(pointer)
    return torch.frombuffer(memory, dtype=TYPES[kind[1:]])
