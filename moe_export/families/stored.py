"""Stored entries of a checkpoint, and readers of its tensors in any format.

A quantized matrix [outputs, inputs] is stored transposed, in the layout of MatMul: codes [inputs,
outputs] under its own name, scales with the suffix `.scale` and zero points with `.zero_point`.

Legend: K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.families.base import ModelSpec
from moe_export.formats import QuantizedMatrix
from moe_export.formats.storage import (
    CODE_DTYPES,
    SCALE_SUFFIX,
    from_storage,
    stored_parts,
)
from moe_export.quantization import QuantizedFormat


@dataclass(frozen=True)
class StoredTensor:
    """Expected entry of a checkpoint.

    Attributes:
        shape: Stored shape.
        dtype: Required dtype; None if any floating-point dtype is accepted.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None = None


def scale_name(name: str) -> str:
    """Stored name of the scales of a quantized tensor."""
    return name + SCALE_SUFFIX


def part_names(spec: ModelSpec, name: str) -> list[str]:
    """Stored names of a tensor: its own, or those of all parts if it is quantized.

    Parts are in the order of `QuantizedMatrix.parts`.
    """
    if format_in(spec, name) is None:
        return [name]
    return [name + suffix for suffix in _parts(spec, name)]


def format_in(spec: ModelSpec, name: str) -> QuantizedFormat | None:
    """Format of the tensor with the given name; None if it is not quantized."""
    tensor = spec.tensors[name]
    return spec.quantization.format_of(tensor.role, tensor.layer)


def stored_tensors(spec: ModelSpec) -> dict[str, StoredTensor]:
    """Entries that a checkpoint of the model must have, by stored name."""
    stored = {}
    for name, tensor in spec.tensors.items():
        if format_in(spec, name) is None:
            own = tensor.stored or spec.quantization.float_of(tensor.role, tensor.layer)
            stored[name] = StoredTensor(tensor.shape, None if own is None else np.dtype(own))
            continue
        for suffix, (shape, dtype) in _parts(spec, name).items():
            stored[name + suffix] = StoredTensor(shape, dtype)
    return stored


def stored_dtype(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> np.dtype[Any]:
    """Dtype of a tensor in floats: its own, or that of the checkpoint it is made from."""
    own = spec.tensors[name].stored
    return checkpoint.tensors[name].dtype if own is None else np.dtype(own)


def _advice(checkpoint: Checkpoint, missing: str) -> str:
    """Advice about a missing tensor, which may be there under a longer name."""
    longer = next((name for name in checkpoint.tensors if name.endswith(f".{missing}")), None)
    if longer is None:
        return "get a complete copy of the checkpoint"
    prefix = longer.removesuffix(missing)
    return f"names begin with {prefix!r}: save the model itself, not what wraps it"


def check_tensors(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Checks that a checkpoint has exactly the tensors that its config specifies.

    Raises:
        CheckpointError: A tensor is missing, has the wrong shape or storage type, or is unknown to
            the family. Unknown tensors are never dropped.
    """
    where = checkpoint.directory
    wanted = stored_tensors(spec)
    for name, expected in wanted.items():
        entry = checkpoint.tensors.get(name)
        if entry is None:
            raise CheckpointError(
                f"{where}: tensor {name} is missing, {spec.family.model_type} needs it; "
                f"{_advice(checkpoint, name)}"
            )
        if entry.shape != expected.shape:
            raise CheckpointError(
                f"{where / entry.shard}: tensor {name} has shape {list(entry.shape)}, config.json "
                f"asks for {list(expected.shape)}"
            )
        if expected.dtype is None:
            wrong = entry.dtype in CODE_DTYPES
        else:
            wrong = entry.dtype != expected.dtype
        if wrong:
            raise CheckpointError(
                f"{where / entry.shard}: tensor {name} is stored as {entry.dtype}, config.json "
                f"asks for {expected.dtype or 'a floating-point type'}"
            )
    unknown = sorted(checkpoint.tensors.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(
            f"{where}: tensor {unknown[0]} (and {len(unknown) - 1} more) is unknown to "
            f"{spec.family.model_type}; the run stops rather than drop weights"
        )


def read_quantized(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> QuantizedMatrix:
    """Reads a quantized matrix [K, N].

    Raises:
        CheckpointError: A part is missing or damaged.
    """
    format_name = format_in(spec, name)
    assert format_name is not None
    return from_storage(
        format_name,
        [checkpoint.read(part) for part in part_names(spec, name)],
        _shape_KN(spec, name),
        spec.quantization.group_size,
    )


def read_values(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> NDArray[Any]:
    """Reads a tensor in the layout of transformers: as stored, or dequantized to float32.

    Raises:
        CheckpointError: The tensor or a part of it is missing or damaged.
    """
    if format_in(spec, name) is None:
        return checkpoint.read(name)
    return read_quantized(checkpoint, spec, name).dequantized().T


def _parts(spec: ModelSpec, name: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    format_name = format_in(spec, name)
    assert format_name is not None
    return stored_parts(format_name, _shape_KN(spec, name), spec.quantization.group_size)


def _shape_KN(spec: ModelSpec, name: str) -> tuple[int, int]:
    outputs, inputs = spec.tensors[name].shape
    return inputs, outputs
