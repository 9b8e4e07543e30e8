"""Structures and calls of the library's plain C interface (`op/native/cpu/c_api.h`), by ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
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
    "int32": 6,
    "int64": 7,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
    "uint4": 21,
    "int4": 22,
}
"""Element types by their numbers in ONNX."""

MESSAGE_BYTES = 1024


class Tensor(ctypes.Structure):
    """Structure `MoeTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("type", ctypes.c_int32),
    )


class LinearWeights(ctypes.Structure):
    """Structure `LinearWeights`."""

    _fields_ = (
        ("format", ctypes.c_char_p),
        ("group_size", ctypes.c_int64),
        ("x_type", ctypes.c_int32),
        ("exact_activations", ctypes.c_int32),
        ("tensors", ctypes.POINTER(Tensor)),
        ("num_tensors", ctypes.c_size_t),
    )


class Weights(ctypes.Structure):
    """Structure `MoeWeights`: the fields of a `LinearWeights` with others around them."""

    _fields_ = (
        ("num_experts", ctypes.c_int64),
        ("activation", ctypes.c_char_p),
        *LinearWeights._fields_,
        ("units", Tensor),
    )


class RefusedError(Exception):
    """A refusal of the library, with its sentence."""


def load(path: Path) -> ctypes.CDLL:
    """Loads the library into this process.

    Raises:
        DependencyError: if it cannot be loaded.
    """
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise DependencyError(
            f"the native library {path} cannot be loaded ({error}): build it again on this machine"
        ) from error


def tensor(array: NDArray[Any], keep: list[Any]) -> Tensor:
    """Describes an array for the library.

    Args:
        array: values of a dtype in ONNX_TYPES; int4 and uint4 are stored two to a byte.
        keep: list that receives the objects that must live as long as the result.
    """
    name = array.dtype.name
    packs = name in ("int4", "uint4")
    data = int4.pack(array) if packs else np.ascontiguousarray(array)
    return tensor_of_bytes(data, name, array.shape, keep)


def tensor_of_bytes(
    data: NDArray[Any], name: str, shape: tuple[int, ...], keep: list[Any]
) -> Tensor:
    """Describes contiguous data for the library.

    Args:
        data: elements as ONNX stores them.
        name: element type, a key of ONNX_TYPES.
        shape: shape of the tensor.
        keep: list that receives the objects that must live as long as the result.
    """
    extents = (ctypes.c_int64 * len(shape))(*shape)
    keep += [data, extents]
    return Tensor(data.ctypes.data, extents, len(shape), ONNX_TYPES[name])


def linear_weights(
    arrays: Sequence[NDArray[Any]],
    format_name: str,
    group_size: int,
    x_dtype: str,
    keep: list[Any],
    *,
    exact_activations: bool = False,
) -> LinearWeights:
    """Describes the weights of a `Linear` node for the library.

    Args:
        arrays: parts of the matrix, then the bias if there is one.
        format_name: format of the matrix.
        group_size: depths that share a scale; 0 in the float formats.
        x_dtype: dtype of x.
        keep: list that receives the objects that must live as long as the result.
        exact_activations: True to multiply codes by x in float32.
    """
    tensors = (Tensor * len(arrays))(*[tensor(array, keep) for array in arrays])
    keep.append(tensors)
    name, number = format_name.encode(), ONNX_TYPES[x_dtype]
    return LinearWeights(name, group_size, number, int(exact_activations), tensors, len(arrays))


def call(function: Any, *arguments: Any) -> None:
    """Calls a function of the library that writes a message on refusal.

    Raises:
        RefusedError: if it refuses.
    """
    message = ctypes.create_string_buffer(MESSAGE_BYTES)
    if function(*arguments, message, ctypes.c_size_t(MESSAGE_BYTES)):
        raise RefusedError(message.value.decode())
