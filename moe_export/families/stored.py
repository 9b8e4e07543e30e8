"""What a checkpoint of a model holds, tensor by tensor, and reading it whatever its format.

A matrix [outputs, inputs] that is quantized is stored the other way round, as MatMul takes it:
codes [inputs, outputs] under its own name, and scales under that name with `.scale` behind it.

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
    SCALE_DTYPE,
    code_shape,
    from_storage,
    scale_shape,
)
from moe_export.quantization import QuantizedFormat


@dataclass(frozen=True)
class StoredTensor:
    """One entry of a checkpoint.

    Attributes:
        shape: as stored.
        dtype: the only one that is right; None where any floating-point one is.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None = None


def scale_name(name: str) -> str:
    """Under which name the scales of a quantized tensor are stored."""
    return f"{name}.scale"


def format_in(spec: ModelSpec, name: str) -> QuantizedFormat | None:
    """The format of a tensor by its name; None if it is not quantized."""
    tensor = spec.tensors[name]
    return spec.quantization.format_of(tensor.role, tensor.layer)


def stored_tensors(spec: ModelSpec) -> dict[str, StoredTensor]:
    """Every entry that a checkpoint of the model must have, by name."""
    stored = {}
    for name, tensor in spec.tensors.items():
        format_name = format_in(spec, name)
        if format_name is None:
            stored[name] = StoredTensor(tensor.shape)
            continue
        shape_KN = _shape_KN(spec, name)
        codes = code_shape(format_name, shape_KN)
        scale = scale_shape(shape_KN, spec.quantization.group_size)
        stored[name] = StoredTensor(codes, CODE_DTYPES[format_name])
        stored[scale_name(name)] = StoredTensor(scale, SCALE_DTYPE)
    return stored


def check_ledger(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Holds every tensor of a checkpoint against what its config says the model has.

    Raises:
        CheckpointError: a tensor is missing, of the wrong shape or storage type, or unknown to the
            family. Nothing that is not understood is ever dropped.
    """
    where = checkpoint.directory
    wanted = stored_tensors(spec)
    for name, expected in wanted.items():
        found = checkpoint.tensors.get(name)
        if found is None:
            raise CheckpointError(
                f"{where}: tensor {name} is missing, {spec.family.model_type} needs it; "
                "get a complete copy of the checkpoint"
            )
        if found.shape != expected.shape:
            raise CheckpointError(
                f"{where / found.shard}: tensor {name} has shape {list(found.shape)}, config.json "
                f"asks for {list(expected.shape)}"
            )
        if expected.dtype is None:
            wrong = found.dtype in CODE_DTYPES.values()
        else:
            wrong = found.dtype != expected.dtype
        if wrong:
            raise CheckpointError(
                f"{where / found.shard}: tensor {name} is stored as {found.dtype}, config.json "
                f"asks for {expected.dtype or 'a floating-point type'}"
            )
    unknown = sorted(checkpoint.tensors.keys() - wanted.keys())
    if unknown:
        raise CheckpointError(
            f"{where}: tensor {unknown[0]} (and {len(unknown) - 1} more) is unknown to "
            f"{spec.family.model_type}; the run stops rather than drop weights"
        )


def read_quantized(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> QuantizedMatrix:
    """A quantized tensor as codes and scales, [K, N].

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return from_storage(
        checkpoint.read(name),
        checkpoint.read(scale_name(name)),
        _shape_KN(spec, name),
        spec.quantization.group_size,
    )


def read_values(checkpoint: Checkpoint, spec: ModelSpec, name: str) -> NDArray[Any]:
    """A tensor in the layout of transformers: as stored, or dequantized to float32.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if format_in(spec, name) is None:
        return checkpoint.read(name)
    return read_quantized(checkpoint, spec, name).dequantized().T


def _shape_KN(spec: ModelSpec, name: str) -> tuple[int, int]:
    outputs, inputs = spec.tensors[name].shape
    return inputs, outputs
