"""Writes a model: the graph to one file, its weights to another, one weight in memory at a time.

All weights go to the data file in the order of the graph, and so do other floating-point
initializers except scalars. Integers and scalars stay in the graph, where shape inference and
fusions look for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from moe_export.graph.builder import CLASS_KEY
from moe_export.graph.shapes import with_shapes
from moe_export.graph.weights import ChunkedTensor
from moe_export.system.digested import DigestedFile, digested
from moe_export.system.disk import disk_error
from moe_export.variants import DATA_FILE, MODEL_FILE

ALIGNMENT_BYTES = 64
"""Alignment of an offset: ONNX Runtime maps the file, so pointers begin on a cache line."""

LARGE_BYTES = 1 << 20
LARGE_ALIGNMENT_BYTES = 4096
"""Alignment of weights of `LARGE_BYTES` or more: a page, so that each is paged on its own."""


class Placement(NamedTuple):
    """Name, offset and size in bytes of a weight in the data file."""

    name: str
    offset: int
    size_bytes: int


def layout(model: ir.Model) -> list[Placement]:
    """Placement of every weight in the data file, in file order."""
    placements, end = [], 0
    for value in model.graph.initializers.values():
        if is_outside(value):
            assert value.name is not None
            assert value.const_value is not None
            size_bytes = value.const_value.nbytes
            offset = offset_after(end, size_bytes)
            placements.append(Placement(value.name, offset, size_bytes))
            end = offset + size_bytes
    return placements


def is_outside(value: ir.Value) -> bool:
    """True for an initializer whose values are in the data file."""
    tensor = value.const_value
    assert tensor is not None
    large = CLASS_KEY in value.meta or tensor.dtype.is_floating_point()
    return bool(large and len(tensor.shape) and tensor.nbytes)


def offset_after(end: int, size_bytes: int) -> int:
    """Offset of a weight behind the one that ends at a byte; the only source of offsets."""
    alignment = LARGE_ALIGNMENT_BYTES if size_bytes >= LARGE_BYTES else ALIGNMENT_BYTES
    return -(-end // alignment) * alignment


def save_model(
    model: ir.Model, directory: Path, progress: Callable[[int, int], None] | None = None
) -> None:
    """Writes `model.onnx.data` and then `model.onnx`, each under a temporary name until complete.

    Args:
        model: Result of `build_decoder`; unchanged afterwards.
        directory: Existing directory for the two files.
        progress: Function called with the number of weights written and the number of all.

    Raises:
        ResourceError: A file cannot be written.
        CheckpointError: A weight cannot be read or does not fit the model's dtype.
    """
    placements = layout(model)
    with _replacing(directory / DATA_FILE) as file:
        for done, placement in enumerate(placements, start=1):
            file.write(bytes(placement.offset - file.tell()))
            tensor = model.graph.initializers[placement.name].const_value
            assert tensor is not None
            if isinstance(tensor, ChunkedTensor):
                for chunk in tensor.chunks():
                    # numpy has no buffer of bfloat16, so the chunk is viewed as bytes.
                    file.write(chunk.reshape(-1).view(np.uint8).data)
            else:
                file.write(tensor.tobytes())
            if progress is not None:
                progress(done, len(placements))
    save_graph(model, directory / MODEL_FILE, DATA_FILE)


def save_graph(model: ir.Model, path: Path, data_name: str) -> None:
    """Writes a model's graph, with references to its weights in a file of `save_model`.

    Args:
        model: Result of `build_decoder`; unchanged afterwards.
        path: File of the graph.
        data_name: Name of the weights' file in the folder of the graph.

    Raises:
        ResourceError: The file cannot be written.
    """
    with _replacing(path) as file:
        file.write(_graph_bytes(model, layout(model), data_name))


def _graph_bytes(model: ir.Model, placements: list[Placement], data_name: str) -> bytes:
    """Serialized model in which references to the data file replace the weights."""
    own = {}
    try:
        for name, offset, size_bytes in placements:
            value = model.graph.initializers[name]
            tensor = value.const_value
            assert tensor is not None
            own[name] = tensor
            value.const_value = ir.ExternalTensor(
                data_name,
                offset,
                size_bytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=name,
            )
        serialized: bytes = with_shapes(ir.to_proto(model)).SerializeToString(deterministic=True)
        return serialized
    finally:
        for name, tensor in own.items():
            model.graph.initializers[name].const_value = tensor


@contextmanager
def _replacing(path: Path) -> Iterator[DigestedFile]:
    """Opens a temporary file that gets its name when all of it is on the disk."""
    temporary = path.with_name(path.name + ".partial")
    try:
        with digested(temporary) as (written, file):
            yield written
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)
