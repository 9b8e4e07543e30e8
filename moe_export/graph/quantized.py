"""Quantized weights of the graph, laid out as the operators that take them want it.

Legend: K depth (inputs), N columns (outputs), G groups along K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.families.stored import scale_name
from moe_export.formats.storage import code_shape, from_storage, scale_shape
from moe_export.graph.weights import Dtype, Read
from moe_export.quantization import QuantizedFormat

BITS = {"int8": 8, "int4": 4}

CODE_TYPES = {"int8": ir.DataType.INT8, "int4": ir.DataType.INT4}


def ragged_moe_weight(
    spec: ModelSpec, source: str, format_name: QuantizedFormat, dtype: Dtype, read: Read
) -> tuple[ir.LazyTensor, ir.LazyTensor]:
    """Codes [K, N] and scales [G, N] of one matrix of an expert.

    A matrix without elements gets one unit of zeros, which changes nothing: ONNX Runtime (seen in
    1.32) does not create a session in which DequantizeLinear and MatMul of an empty matrix are to
    become MatMulNBits.
    """
    outputs, inputs = spec.tensors[source].shape
    shape_KN = (max(inputs, 1), max(outputs, 1))
    empty = inputs * outputs == 0
    code_type = CODE_TYPES[format_name]
    stored = code_shape(format_name, shape_KN)
    groups = scale_shape(shape_KN, spec.quantization.group_size)

    def codes() -> ir.TensorProtocol:
        values = np.zeros(stored, np.int8 if format_name == "int8" else np.uint8)
        if not empty:
            values = read(source)
        if format_name == "int8":
            return ir.Tensor(values, name=source)
        return ir.PackedTensor(values, code_type, shape=ir.Shape(shape_KN), name=source)

    def scale() -> ir.TensorProtocol:
        name = scale_name(source)
        values = np.zeros(groups, dtype) if empty else read(name).astype(dtype)
        return ir.Tensor(values, name=name)

    return (
        _lazy(source, code_type, shape_KN, codes),
        _lazy(scale_name(source), _float_type(dtype), groups, scale),
    )


def matmul_nbits_weight(
    spec: ModelSpec,
    name: str,
    sources: Sequence[str],
    format_name: QuantizedFormat,
    dtype: Dtype,
    read: Read,
) -> tuple[ir.LazyTensor, ir.LazyTensor]:
    """Codes [N, G, bytes of a group] and scales [N, G] of matrices that lie side by side."""
    group_size = spec.quantization.group_size
    shapes = [spec.tensors[source].shape for source in sources]
    depth, columns = shapes[0][1], sum(shape[0] for shape in shapes)
    groups = -(-depth // group_size)

    def codes() -> ir.TensorProtocol:
        parts = []
        for source, (outputs, inputs) in zip(sources, shapes, strict=True):
            stored = (read(source), read(scale_name(source)))
            matrix = from_storage(*stored, (inputs, outputs), group_size)
            parts.append(_unsigned_groups(matrix.codes, format_name, group_size))
        return ir.Tensor(np.concatenate(parts), name=name)

    def scale() -> ir.TensorProtocol:
        scales = [read(scale_name(source)) for source in sources]
        values = np.concatenate(scales, axis=1).T.astype(dtype, order="C")
        return ir.Tensor(values, name=scale_name(name))

    group_bytes = group_size * BITS[format_name] // 8
    return (
        _lazy(name, ir.DataType.UINT8, (columns, groups, group_bytes), codes),
        _lazy(scale_name(name), _float_type(dtype), (columns, groups), scale),
    )


def lookup_weight(
    spec: ModelSpec, source: str, dtype: Dtype, read: Read
) -> tuple[ir.LazyTensor, ir.LazyTensor]:
    """Codes [V, D] and scales [V, groups of D] of an int8 table, as GatherBlockQuantized reads it
    where no zero point is given: with half of the range added.
    """
    vocab, hidden = spec.tensors[source].shape
    group_size = spec.quantization.group_size

    def codes() -> ir.TensorProtocol:
        stored = (read(source), read(scale_name(source)))
        matrix = from_storage(*stored, (hidden, vocab), group_size)
        shifted = (matrix.codes.T.astype(np.int16) + 128).astype(np.uint8)
        return ir.Tensor(np.ascontiguousarray(shifted), name=source)

    def scale() -> ir.TensorProtocol:
        values = read(scale_name(source)).T.astype(dtype, order="C")
        return ir.Tensor(values, name=scale_name(source))

    groups = -(-hidden // group_size)
    return (
        _lazy(source, ir.DataType.UINT8, (vocab, hidden), codes),
        _lazy(scale_name(source), _float_type(dtype), (vocab, groups), scale),
    )


def _unsigned_groups(
    codes_KN: NDArray[Any], format_name: QuantizedFormat, group_size: int
) -> NDArray[np.uint8]:
    """Codes as MatMulNBits reads them where no zero point is given: with half of their range added,
    the first of two int4 in the lower nibble, the last group filled up with what means zero.
    """
    depth, columns = codes_KN.shape
    groups = -(-depth // group_size)
    signed = np.zeros((columns, groups * group_size), np.int16)
    signed[:, :depth] = codes_KN.T.astype(np.int8)
    codes = (signed + (1 << (BITS[format_name] - 1))).astype(np.uint8)
    if format_name == "int4":
        codes = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return codes.reshape(columns, groups, -1)


def _float_type(dtype: Dtype) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(dtype))


def _lazy(
    name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], ir.TensorProtocol]
) -> ir.LazyTensor:
    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=name)
