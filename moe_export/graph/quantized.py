"""Quantized weights of the graph, in the layouts that the operators expect.

Legend: K depth (inputs), N columns (outputs), G groups along K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from moe_export.families.base import ModelSpec
from moe_export.families.stored import part_names, scale_name
from moe_export.formats import GRIDS, Grid, QuantizedMatrix
from moe_export.formats.matrix import side_by_side
from moe_export.formats.storage import (
    SCALE_SUFFIX,
    ZERO_POINT_SUFFIX,
    from_storage,
    scale_shape,
    stored_parts,
)
from moe_export.graph.weights import Read
from moe_export.op.spec import Dtype
from moe_export.quantization import QuantizedFormat


def ragged_moe_weight(
    spec: ModelSpec, source: str, format_name: QuantizedFormat, dtype: Dtype, read: Read
) -> list[ir.LazyTensor]:
    """Codes [K, N], scales [G, N] and, if the format has them, zero points [G, N] of one matrix.

    The matrix is one of an expert. An empty matrix gets one row or column of zeros, which does not
    change the result. ONNX Runtime (seen in 1.32) cannot create a session in which it would fuse
    DequantizeLinear and MatMul of an empty matrix to MatMulNBits.
    """
    outputs, inputs = spec.tensors[source].shape
    shape_KN = (max(inputs, 1), max(outputs, 1))
    empty = inputs * outputs == 0
    shape_GN = scale_shape(shape_KN, spec.quantization.group_size)
    code_type = ir.DataType.from_numpy(GRIDS[format_name].code_dtype)

    def part(suffix: str, stored: tuple[int, ...], stored_dtype: np.dtype[Any]) -> ir.LazyTensor:
        name = source + suffix
        shape = shape_KN if suffix == "" else shape_GN
        kind = _float_type(dtype) if suffix == SCALE_SUFFIX else code_type

        def make() -> ir.TensorProtocol:
            values = np.zeros(stored, stored_dtype) if empty else read(name)
            if suffix == SCALE_SUFFIX:
                values = values.astype(dtype)
            if kind.bitwidth == 4:
                return ir.PackedTensor(values, kind, shape=ir.Shape(shape), name=name)
            return ir.Tensor(values, name=name)

        return _lazy(name, kind, shape, make)

    parts = stored_parts(format_name, shape_KN, spec.quantization.group_size)
    return [part(suffix, *stored) for suffix, stored in parts.items()]


def linear_weight(
    spec: ModelSpec,
    name: str,
    sources: Sequence[str],
    format_name: QuantizedFormat,
    dtype: Dtype,
    read: Read,
) -> list[ir.LazyTensor]:
    """Inputs of a `Linear` node for matrices that lie side by side.

    Returns:
        Codes [K, N], scales [G, N] and, if the format has them, zero points [G, N].
    """
    shapes = [spec.tensors[source].shape for source in sources]
    shape_KN = (shapes[0][1], sum(shape[0] for shape in shapes))
    shape_GN = scale_shape(shape_KN, spec.quantization.group_size)
    code_type = ir.DataType.from_numpy(GRIDS[format_name].code_dtype)

    def part(place: int, suffix: str) -> ir.LazyTensor:
        kind = _float_type(dtype) if suffix == SCALE_SUFFIX else code_type

        def make() -> ir.TensorProtocol:
            values = stored_matrix(spec, sources, format_name, read).parts[place]
            return ir.Tensor(values.astype(kind.numpy(), order="C", copy=False), name=name + suffix)

        return _lazy(name + suffix, kind, shape_KN if suffix == "" else shape_GN, make)

    parts = stored_parts(format_name, shape_KN, spec.quantization.group_size)
    return [part(place, suffix) for place, suffix in enumerate(parts)]


def stored_matrix(
    spec: ModelSpec, sources: Sequence[str], format_name: QuantizedFormat, read: Read
) -> QuantizedMatrix:
    """Quantized matrices of a checkpoint as one [K, N], their columns side by side."""
    return side_by_side(_stored_matrices(spec, sources, format_name, read))


def _stored_matrices(
    spec: ModelSpec, sources: Sequence[str], format_name: QuantizedFormat, read: Read
) -> list[QuantizedMatrix]:
    """Quantized matrices [K, N] of a checkpoint."""
    return [
        from_storage(
            format_name,
            [read(part) for part in part_names(spec, source)],
            (spec.tensors[source].shape[1], spec.tensors[source].shape[0]),
            spec.quantization.group_size,
        )
        for source in sources
    ]


def matmul_nbits_weight(
    spec: ModelSpec,
    name: str,
    sources: Sequence[str],
    format_name: QuantizedFormat,
    dtype: Dtype,
    read: Read,
) -> list[ir.LazyTensor]:
    """Inputs of MatMulNBits for matrices that lie side by side.

    Returns:
        Codes [N, G, bytes of a group], scales [N, G] and, if the format has them, zero points
        [N, bytes of G].
    """
    grid, group_size = GRIDS[format_name], spec.quantization.group_size
    shapes = [spec.tensors[source].shape for source in sources]
    depth, columns = shapes[0][1], sum(shape[0] for shape in shapes)
    groups = -(-depth // group_size)

    def matrices() -> list[QuantizedMatrix]:
        return _stored_matrices(spec, sources, format_name, read)

    def codes() -> ir.TensorProtocol:
        parts = [_unsigned_groups(matrix, grid) for matrix in matrices()]
        return ir.Tensor(np.concatenate(parts), name=name)

    def scale() -> ir.TensorProtocol:
        scales = [read(scale_name(source)) for source in sources]
        values = np.concatenate(scales, axis=1).T.astype(dtype, order="C")
        return ir.Tensor(values, name=scale_name(name))

    def zero_point() -> ir.TensorProtocol:
        zeros = [_zero_points(matrix) for matrix in matrices()]
        values = _in_bytes(np.concatenate(zeros, axis=1).T, grid.storage_bits)
        return ir.Tensor(values, name=name + ZERO_POINT_SUFFIX)

    group_bytes = group_size * grid.storage_bits // 8
    parts = [
        _lazy(name, ir.DataType.UINT8, (columns, groups, group_bytes), codes),
        _lazy(scale_name(name), _float_type(dtype), (columns, groups), scale),
    ]
    if grid.has_zero_point:
        shape = (columns, -(-groups * grid.storage_bits // 8))
        parts.append(_lazy(name + ZERO_POINT_SUFFIX, ir.DataType.UINT8, shape, zero_point))
    return parts


def lookup_weight(spec: ModelSpec, source: str, dtype: Dtype, read: Read) -> list[ir.LazyTensor]:
    """Codes [V, D] and scales [V, groups of D] of an int8 table for GatherBlockQuantized.

    Without a zero point the operator subtracts 128, so 128 is added to the codes here.
    """
    vocab, hidden = spec.tensors[source].shape
    group_size = spec.quantization.group_size

    def codes() -> ir.TensorProtocol:
        shifted = (read(source).T.astype(np.int16) + 128).astype(np.uint8)
        return ir.Tensor(np.ascontiguousarray(shifted), name=source)

    def scale() -> ir.TensorProtocol:
        values = read(scale_name(source)).T.astype(dtype, order="C")
        return ir.Tensor(values, name=scale_name(source))

    groups = -(-hidden // group_size)
    return [
        _lazy(source, ir.DataType.UINT8, (vocab, hidden), codes),
        _lazy(scale_name(source), _float_type(dtype), (vocab, groups), scale),
    ]


def _unsigned_groups(matrix: QuantizedMatrix, grid: Grid) -> NDArray[np.uint8]:
    """Codes in the layout of MatMulNBits, [N, G, bytes] uint8.

    Formats without zero points get half of the code range added. The first of two 4-bit codes is
    in the lower nibble. The last group is padded with the code for zero.
    """
    depth, columns = matrix.shape
    groups = len(matrix.scale)
    codes = np.empty((columns, groups * matrix.group_size), np.uint8)
    if grid.has_zero_point:
        codes[:, :depth] = matrix.codes.T.astype(np.uint8, copy=False)
        codes[:, depth:] = _zero_points(matrix)[-1:].T
    else:
        # In two's complement, flipping the highest bit adds half of the range.
        half, mask = (0x80, 0xFF) if grid.storage_bits == 8 else (0x08, 0x0F)
        codes[:, :depth] = matrix.codes.T.astype(np.int8, copy=False).view(np.uint8)
        codes[:, :depth] ^= half
        codes &= mask
        codes[:, depth:] = half
    return _in_bytes(codes, grid.storage_bits).reshape(columns, groups, -1)


def _zero_points(matrix: QuantizedMatrix) -> NDArray[np.uint8]:
    assert matrix.zero_point is not None
    return matrix.zero_point.astype(np.uint8, copy=False)


def _in_bytes(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Packs each row of codes into bytes; every row begins with a new byte."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: NDArray[np.uint8] = even[:, 0::2] | (even[:, 1::2] << np.uint8(4))
    return packed


def _float_type(dtype: Dtype) -> ir.DataType:
    return ir.DataType.from_numpy(np.dtype(dtype))


def _lazy(
    name: str, dtype: ir.DataType, shape: tuple[int, ...], make: Callable[[], ir.TensorProtocol]
) -> ir.LazyTensor:
    return ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(shape), name=name)
