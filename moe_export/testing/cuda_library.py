"""The library's CUDA side through its C interface, on the stand-in driver or on a device."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from moe_export.op.c_interface import ONNX_TYPES, RefusedError, Tensor, Weights, tensor
from moe_export.testing.c_library import Call
from moe_export.testing.cases import Inputs


class DeviceMemory(Protocol):
    """Memory of a device, by address."""

    def allocate(self, size: int) -> int:
        """Allocates bytes that hold NaN; returns their address."""

    def free(self, pointer: int) -> None:
        """Frees an allocation."""

    def write(self, pointer: int, data: bytes) -> None:
        """Copies bytes to the device, after all work on it."""

    def read(self, pointer: int, size: int) -> bytes:
        """Copies bytes from the device, after all work on it."""


class DeviceArrays:
    """Copies of arrays in device memory, freed at the end of a `with`."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._pointers: list[int] = []
        self._keep: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pointer in self._pointers:
            self._memory.free(pointer)

    def empty(self, size: int) -> int:
        """Address of new bytes that hold NaN."""
        self._pointers.append(self._memory.allocate(max(1, size)))
        return self._pointers[-1]

    def put(self, array: NDArray[Any], *, shift: int = 0) -> int:
        """Address of a copy of an array, `shift` bytes into an allocation."""
        pointer = self.empty(array.nbytes + shift) + shift
        self._memory.write(pointer, array.tobytes())
        return pointer

    def tensor(self, array: NDArray[Any] | None, *, shift: int = 0) -> Tensor:
        """A copy of an array, described for the library."""
        if array is None:
            return Tensor()
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self._keep.append(shape)
        pointer = self.put(array, shift=shift)
        return Tensor(pointer, shape, array.ndim, ONNX_TYPES[array.dtype.name])


class CudaLayer:
    """A layer that the library packed and uploaded.

    Raises:
        RefusedError: The library does not accept the layer.
    """

    def __init__(self, library: Path, memory: DeviceMemory, inputs: Inputs) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.moe_export_cuda_layer_bytes.restype = ctypes.c_uint64
        self._memory = memory
        keep: list[Any] = []
        weights = inputs.weights
        tensors = (Tensor * len(weights))(*[tensor(weight, keep) for weight in weights])
        described = Weights(
            *(len(inputs.experts), inputs.activation.encode(), inputs.format_name.encode()),
            inputs.group_size,
            *(ONNX_TYPES[inputs.x.dtype.name], 0, tensors, len(weights)),
        )
        if (units := inputs.extra_inputs.get("units")) is not None:
            described.units = tensor(units, keep)
        self._layer = ctypes.c_void_p()
        message = ctypes.create_string_buffer(1024)
        if self._library.moe_export_cuda_create(
            ctypes.byref(described), ctypes.byref(self._layer), message, ctypes.c_size_t(1024)
        ):
            raise RefusedError(message.value.decode())

    def destroy(self) -> None:
        """Frees the layer's device memory."""
        self._library.moe_export_cuda_destroy(self._layer)

    @property
    def device_bytes(self) -> int:
        """Bytes of the layer on the device."""
        size: int = self._library.moe_export_cuda_layer_bytes(self._layer)
        return size

    def run(self, inputs: Inputs, *, stream: int = 0, x_shift: int = 0) -> NDArray[Any]:
        """Runs the layer; x begins `x_shift` bytes into its allocation."""
        message = ctypes.create_string_buffer(1024)
        with DeviceArrays(self._memory) as device:
            y = device.empty(inputs.x.nbytes)
            call = Call(
                device.tensor(inputs.x, shift=x_shift),
                device.tensor(inputs.expert_indices),
                device.tensor(inputs.routing_weights),
                device.tensor(inputs.shared_weight),
                device.tensor(inputs.extra_inputs.get("input_scale")),
                device.tensor(inputs.extra_inputs.get("up_scale")),
                device.tensor(inputs.extra_inputs.get("hidden_scale")),
                y,
            )
            if self._library.moe_export_cuda_run(
                *(self._layer, ctypes.byref(call), ctypes.c_void_p(stream)),
                *(message, ctypes.c_size_t(1024)),
            ):
                raise RefusedError(message.value.decode())
            output = self._memory.read(y, inputs.x.nbytes)
        return np.frombuffer(output, inputs.x.dtype).reshape(inputs.x.shape)
