"""The library's plain C interface through ctypes: kernels without ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats import int4

ONNX_TYPES = {
    "float32": 1,
    "int8": 3,
    "int64": 7,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
    "int4": 22,
}


class RefusedError(Exception):
    """The library's own sentence."""


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


class _Weights(ctypes.Structure):
    _fields_ = (
        ("num_experts", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        ("format", ctypes.c_char_p),
        ("group_size", ctypes.c_int64),
        ("x_type", ctypes.c_int32),
        ("exact_activations", ctypes.c_int32),
        ("tensors", ctypes.POINTER(_Tensor)),
        ("num_tensors", ctypes.c_size_t),
    )


class _Call(ctypes.Structure):
    _fields_ = (
        ("x", _Tensor),
        ("expert_indices", _Tensor),
        ("routing_weights", _Tensor),
        ("shared_weight", _Tensor),
        ("y", ctypes.c_void_p),
    )


def _tensor(array: NDArray[Any] | None, keep: list[Any]) -> _Tensor:
    if array is None:
        return _Tensor()
    name = array.dtype.name
    data = int4.pack(array) if array.dtype == ml_dtypes.int4 else np.ascontiguousarray(array)
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    keep += [data, shape]
    return _Tensor(data.ctypes.data, shape, array.ndim, ONNX_TYPES[name])


class CLayer:
    """A layer packed by the library."""

    def __init__(
        self,
        library: Path,
        weights: Sequence[NDArray[Any]],
        *,
        num_experts: int,
        format_name: str,
        x_dtype: str,
        group_size: int = 0,
        activation: str = "swiglu",
        kernel: str | None = None,
        exact_activations: bool = False,
    ) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.moe_export_layer_bytes.restype = ctypes.c_uint64
        keep: list[Any] = []
        tensors = (_Tensor * len(weights))(*[_tensor(weight, keep) for weight in weights])
        described = _Weights(
            num_experts,
            activation.encode(),
            format_name.encode(),
            group_size,
            ONNX_TYPES[x_dtype],
            int(exact_activations),
            tensors,
            len(weights),
        )
        self._layer = ctypes.c_void_p()
        name = None if kernel is None else kernel.encode()
        message = ctypes.create_string_buffer(1024)
        if self._library.moe_export_create(
            ctypes.byref(described), name, ctypes.byref(self._layer), message, ctypes.c_size_t(1024)
        ):
            raise RefusedError(message.value.decode())

    def __del__(self) -> None:
        if getattr(self, "_layer", None):
            self._library.moe_export_destroy(self._layer)

    @property
    def packed_bytes(self) -> int:
        """What the packed weights take in memory."""
        size: int = self._library.moe_export_layer_bytes(self._layer)
        return size

    def run(
        self,
        x: NDArray[Any],
        expert_indices: NDArray[Any],
        routing_weights: NDArray[Any],
        shared_weight: NDArray[Any] | None = None,
        *,
        num_threads: int = 1,
    ) -> NDArray[Any]:
        """One execution."""
        keep: list[Any] = []
        y = np.empty_like(x)
        call = _Call(
            _tensor(x, keep),
            _tensor(expert_indices, keep),
            _tensor(routing_weights, keep),
            _tensor(shared_weight, keep),
            y.ctypes.data,
        )
        message = ctypes.create_string_buffer(1024)
        if self._library.moe_export_run(
            self._layer, ctypes.byref(call), num_threads, message, ctypes.c_size_t(1024)
        ):
            raise RefusedError(message.value.decode())
        return y
