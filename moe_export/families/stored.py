"""What a checkpoint of a model holds, tensor by tensor, and reading it whatever its format.

A matrix [outputs, inputs] that is quantized is stored the other way round, as MatMul takes it:
codes [inputs, outputs] under its own name, and scales under that name with `.scale` behind it, as
are zero points with `.zero_point`.

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
    """One entry of a checkpoint.

    Attributes:
        shape: as stored.
        dtype: the only one that is right; None where any floating-point one is.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None = None


def scale_name(name: str) -> str:
    """Under which name the scales of a quantized tensor are stored."""
    return name + SCALE_SUFFIX


def part_names(spec: ModelSpec, name: str) -> list[str]:
    """Under which names a tensor is stored: its own, and of a quantized one those of all parts, in
    the order of `QuantizedMatrix.parts`.
    """
    if format_in(spec, name) is None:
        return [name]
    return [name + suffix for suffix in _parts(spec, name)]


def format_in(spec: ModelSpec, name: str) -> QuantizedFormat | None:
    """The format of a tensor by its name; None if it is not quantized."""
    tensor = spec.tensors[name]
    return spec.quantization.format_of(tensor.role, tensor.layer)


def stored_tensors(spec: ModelSpec) -> dict[str, StoredTensor]:
    """Every entry that a checkpoint of the model must have, by name."""
    stored = {}
    for name, tensor in spec.tensors.items():
        if format_in(spec, name) is None:
            own = spec.quantization.float_of(tensor.role, tensor.layer)
            stored[name] = StoredTensor(tensor.shape, None if own is None else np.dtype(own))
            continue
        for suffix, (shape, dtype) in _parts(spec, name).items():
            stored[name + suffix] = StoredTensor(shape, dtype)
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
            wrong = found.dtype in CODE_DTYPES
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
    """A quantized tensor [K, N].

    Raises:
        CheckpointError: it is missing or damaged.
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
    """A tensor in the layout of transformers: as stored, or dequantized to float32.

    Raises:
        CheckpointError: it is missing or damaged.
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
