"""The library's plain C interface through ctypes: kernels without ONNX Runtime."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.op import c_interface
from moe_export.op.c_interface import ONNX_TYPES, RefusedError

__all__ = ["CLayer", "CLinear", "OpenedLayer", "OpenedLinear", "RefusedError", "available_kernels"]


def available_kernels(library: Path) -> tuple[str, ...]:
    """Names of the library's kernels that run on this processor, from fast to plain."""
    message = ctypes.create_string_buffer(c_interface.MESSAGE_BYTES)
    ctypes.CDLL(str(library)).moe_export_kernels(
        message, ctypes.c_size_t(c_interface.MESSAGE_BYTES)
    )
    return tuple(message.value.decode().split(", "))


class Call(ctypes.Structure):
    """Arguments of one run, as the library takes them."""

    _fields_ = (
        ("x", c_interface.Tensor),
        ("expert_indices", c_interface.Tensor),
        ("routing_weights", c_interface.Tensor),
        ("shared_weight", c_interface.Tensor),
        ("input_scale", c_interface.Tensor),
        ("up_scale", c_interface.Tensor),
        ("hidden_scale", c_interface.Tensor),
        ("y", ctypes.c_void_p),
    )


def _tensor(array: NDArray[Any] | None, keep: list[Any]) -> c_interface.Tensor:
    return c_interface.Tensor() if array is None else c_interface.tensor(array, keep)


class _Layer:
    """A layer of the library, packed by it or opened by it."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.moe_export_layer_bytes.restype = ctypes.c_uint64
        self._layer = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_layer", None):
            self._library.moe_export_destroy(self._layer)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights in memory."""
        size: int = self._library.moe_export_layer_bytes(self._layer)
        return size

    def run(
        self,
        x: NDArray[Any],
        expert_indices: NDArray[Any],
        routing_weights: NDArray[Any],
        shared_weight: NDArray[Any] | None = None,
        *,
        scales: Mapping[str, NDArray[Any]] | None = None,
        num_threads: int = 1,
    ) -> NDArray[Any]:
        """Runs the layer; returns y [T, D]. Only factors are read of `scales`, not units."""
        scales = scales or {}
        keep: list[Any] = []
        y = np.empty_like(x)
        call = Call(
            _tensor(x, keep),
            _tensor(expert_indices, keep),
            _tensor(routing_weights, keep),
            _tensor(shared_weight, keep),
            _tensor(scales.get("input_scale"), keep),
            _tensor(scales.get("up_scale"), keep),
            _tensor(scales.get("hidden_scale"), keep),
            y.ctypes.data,
        )
        c_interface.call(self._library.moe_export_run, self._layer, ctypes.byref(call), num_threads)
        return y


class OpenedLayer(_Layer):
    """A layer that the library opens over packed bytes."""

    def __init__(
        self,
        library: Path,
        packed: NDArray[np.uint8],
        *,
        x_dtype: str,
        units: NDArray[np.int32] | None = None,
        kernel: str | None = None,
        exact_activations: bool = False,
    ) -> None:
        super().__init__(library)
        self._packed = packed
        keep: list[Any] = []
        c_interface.call(
            self._library.moe_export_open,
            ctypes.c_void_p(packed.ctypes.data),
            ctypes.c_uint64(packed.nbytes),
            ctypes.byref(_tensor(units, keep)),
            ONNX_TYPES[x_dtype],
            int(exact_activations),
            None if kernel is None else kernel.encode(),
            ctypes.byref(self._layer),
        )


class CLayer(_Layer):
    """A layer that the library packs."""

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
        units: NDArray[np.int32] | None = None,
        kernel: str | None = None,
        exact_activations: bool = False,
    ) -> None:
        super().__init__(library)
        keep: list[Any] = []
        tensors = (c_interface.Tensor * len(weights))(
            *[_tensor(weight, keep) for weight in weights]
        )
        described = c_interface.Weights(
            num_experts,
            activation.encode(),
            format_name.encode(),
            group_size,
            ONNX_TYPES[x_dtype],
            int(exact_activations),
            tensors,
            len(weights),
            _tensor(units, keep),
        )
        c_interface.call(
            self._library.moe_export_create,
            ctypes.byref(described),
            None if kernel is None else kernel.encode(),
            ctypes.byref(self._layer),
        )


class _Linear:
    """A matrix of the library, packed by it or opened by it."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.moe_export_linear_bytes.restype = ctypes.c_uint64
        self._linear = ctypes.c_void_p()
        self.columns = 0

    def __del__(self) -> None:
        if getattr(self, "_linear", None):
            self._library.moe_export_linear_destroy(self._linear)

    @property
    def packed_bytes(self) -> int:
        """Bytes of the bias and the panels in memory."""
        size: int = self._library.moe_export_linear_bytes(self._linear)
        return size

    def run(self, x: NDArray[Any], *, num_threads: int = 1) -> NDArray[Any]:
        """Computes y [..., N] of x [..., K]."""
        keep: list[Any] = []
        y = np.empty((*x.shape[:-1], self.columns), x.dtype)
        c_interface.call(
            self._library.moe_export_linear_run,
            self._linear,
            ctypes.byref(c_interface.tensor(x, keep)),
            ctypes.c_void_p(y.ctypes.data),
            num_threads,
        )
        return y


class CLinear(_Linear):
    """A matrix that the library packs.

    Args:
        library: File of the library.
        arrays: Parts of the matrix, then the bias if there is one.
        format_name: Format of the matrix.
        x_dtype: Dtype of x.
        group_size: Depths that share a scale; 0 in the float formats.
        kernel: Kernel to use; None for the fastest.
        exact_activations: True to multiply codes by x in float32.
    """

    def __init__(
        self,
        library: Path,
        arrays: Sequence[NDArray[Any]],
        *,
        format_name: str,
        x_dtype: str,
        group_size: int = 0,
        kernel: str | None = None,
        exact_activations: bool = False,
    ) -> None:
        super().__init__(library)
        self.columns = arrays[0].shape[-1]
        keep: list[Any] = []
        weights = c_interface.linear_weights(
            arrays, format_name, group_size, x_dtype, keep, exact_activations=exact_activations
        )
        c_interface.call(
            self._library.moe_export_linear_create,
            ctypes.byref(weights),
            None if kernel is None else kernel.encode(),
            ctypes.byref(self._linear),
        )


class OpenedLinear(_Linear):
    """A matrix that the library opens over packed bytes.

    Args:
        library: File of the library.
        packed: Packed matrix, header included.
        columns: N.
        x_dtype: Dtype of x.
        kernel: Kernel to use; None for the fastest.
    """

    def __init__(
        self,
        library: Path,
        packed: NDArray[np.uint8],
        columns: int,
        *,
        x_dtype: str,
        kernel: str | None = None,
    ) -> None:
        super().__init__(library)
        self.columns = columns
        self._packed = packed
        c_interface.call(
            self._library.moe_export_linear_open,
            ctypes.c_void_p(packed.ctypes.data),
            ctypes.c_uint64(packed.nbytes),
            ONNX_TYPES[x_dtype],
            0,
            None if kernel is None else kernel.encode(),
            ctypes.byref(self._linear),
        )
