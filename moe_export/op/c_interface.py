"""The library's plain C interface (`op/native/c_api.h`) for ctypes: structures and errors."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import DependencyError
from moe_export.formats import int4

ONNX_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int64": 7,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
    "uint4": 21,
    "int4": 22,
}
"""Numbers of element types."""

MESSAGE_BYTES = 1024


class Tensor(ctypes.Structure):
    """`MoeTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


class Weights(ctypes.Structure):
    """`MoeWeights`."""

    _fields_ = (
        ("num_experts", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        ("format", ctypes.c_char_p),
        ("group_size", ctypes.c_int64),
        ("x_type", ctypes.c_int32),
        ("exact_activations", ctypes.c_int32),
        ("tensors", ctypes.POINTER(Tensor)),
        ("num_tensors", ctypes.c_size_t),
    )


class RefusedError(Exception):
    """The library's own sentence."""


def load(path: Path) -> ctypes.CDLL:
    """The library, loaded into this process.

    Raises:
        DependencyError: it cannot be loaded.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise DependencyError(
            f"the native library {path} cannot be loaded ({error}): build it again on this machine"
        ) from error


def tensor(array: NDArray[Any], keep: list[Any]) -> Tensor:
    """An array as the library takes it.

    Args:
        array: of any dtype in ONNX_TYPES; int4 and uint4 are packed, two to a byte.
        keep: takes what has to live as long as the result.
    """
    name = array.dtype.name
    packs = name in ("int4", "uint4")
    data = int4.pack(array) if packs else np.ascontiguousarray(array)
    return tensor_of_bytes(data, name, array.shape, keep)


def tensor_of_bytes(
    data: NDArray[Any], name: str, shape: tuple[int, ...], keep: list[Any]
) -> Tensor:
    """The same of contiguous data that holds elements of the type `name` as ONNX stores them."""
    extents = (ctypes.c_int64 * len(shape))(*shape)
    keep += [data, extents]
    return Tensor(data.ctypes.data, extents, len(shape), ONNX_TYPES[name])


def call(function: Any, *arguments: Any) -> None:
    """Calls a function that fills in a message where it refuses.

    Raises:
        RefusedError: it refuses.
    """
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    if function(*arguments, message, ctypes.c_size_t(MESSAGE_BYTES)):
        raise RefusedError(message.value.decode())
