"""Reader of GGUF files: metadata, and tensors as float32.

Layout: magic, version, numbers of tensors and of metadata entries; the entries; name, shape, type
and offset of each tensor; padding; the data. All numbers are little-endian. Documented in
docs/gguf.md of ggml; only the types below are read.

Legend: N blocks of `BLOCK` values.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
BLOCK = 32
"""Values of a block that share a scale."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorType:
    """Storage of a tensor's values.

    Attributes:
        block: Number of values in a block.
        size_bytes: Bytes of a block.
        decode: Function from bytes [N, `size_bytes`] to values float32 [N, `block`].
    """

    block: int
    size_bytes: int
    decode: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def _half(bytes_N2: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(bytes_N2).view("<f2").astype(np.float32)


def _q4_1(bytes_NB: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decodes scale * code + minimum; the low nibbles hold the first half of a block."""
    scale_N1, minimum_N1, nibbles_NH = (
        _half(bytes_NB[:, :2]),
        _half(bytes_NB[:, 2:4]),
        bytes_NB[:, 4:],
    )
    codes_NB = np.concatenate([nibbles_NH & 15, nibbles_NH >> 4], axis=1)
    return scale_N1 * codes_NB.astype(np.float32) + minimum_N1


def _q8_0(bytes_NB: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decodes scale * code."""
    codes_NB = np.ascontiguousarray(bytes_NB[:, 2:]).view(np.int8)
    return _half(bytes_NB[:, :2]) * codes_NB.astype(np.float32)


def _float32(bytes_NB: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(bytes_NB).view("<f4").astype(np.float32)


def _bfloat16(bytes_NB: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(bytes_NB).view(ml_dtypes.bfloat16).astype(np.float32)


TYPES: dict[int, TensorType] = {
    0: TensorType(1, 4, _float32),
    1: TensorType(1, 2, _half),
    3: TensorType(BLOCK, 4 + BLOCK // 2, _q4_1),
    8: TensorType(BLOCK, 2 + BLOCK, _q8_0),
    30: TensorType(1, 2, _bfloat16),
}
"""F32, F16, Q4_1, Q8_0 and BF16 by their number in files."""


@dataclass(frozen=True)
class _Entry:
    shape: tuple[int, ...]
    type: TensorType
    offset: int


class GgufFile:
    """A GGUF file whose tensors are read one at a time.

    Attributes:
        path: Path of the file.
        facts: Metadata by key.
        tensors: Entries of the tensors by name.

    Raises:
        CheckpointError: The file is no GGUF file, is cut short, or has a tensor of another type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self.tensors: dict[str, _Entry] = {}
        with path.open("rb") as file:
            try:
                self._read_header(file)
            except (struct.error, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path} is cut short or damaged ({error})") from error

    def read(self, name: str) -> NDArray[np.float32]:
        """Reads a tensor, float32, in numpy's order of axes.

        Raises:
            CheckpointError: The tensor is absent or cut short.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name}")
        entry = self.tensors[name]
        blocks = math.prod(entry.shape) // entry.type.block
        with self.path.open("rb") as file:
            file.seek(self._start + entry.offset)
            content = file.read(blocks * entry.type.size_bytes)
        if len(content) < blocks * entry.type.size_bytes:
            raise CheckpointError(f"{self.path} ends within tensor {name}; get the file again")
        bytes_NB = np.frombuffer(content, np.uint8).reshape(blocks, entry.type.size_bytes)
        return entry.type.decode(bytes_NB).reshape(entry.shape)

    def _read_header(self, file: BinaryIO) -> None:
        magic = file.read(4)
        if magic != MAGIC:
            raise CheckpointError(f"{self.path} begins with {magic!r}, a GGUF file with {MAGIC!r}")
        version, tensors, entries = _numbers(file, "IQQ")
        if version not in VERSIONS:
            raise CheckpointError(f"{self.path} has version {version}, {VERSIONS} can be read")
        for _ in range(entries):
            key = _string(file)
            self.facts[key] = _value(file, *_numbers(file, "I"))
        for _ in range(tensors):
            self._read_entry(file)
        alignment = int(self.facts.get("general.alignment", 32))
        self._start = -(-file.tell() // alignment) * alignment

    def _read_entry(self, file: BinaryIO) -> None:
        name = _string(file)
        (axes,) = _numbers(file, "I")
        shape = tuple(reversed(_numbers(file, "Q" * axes)))
        number, offset = _numbers(file, "IQ")
        if number not in TYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name} is of type {number}; the types {sorted(TYPES)} can be "
                "read"
            )
        self.tensors[name] = _Entry(shape, TYPES[number], offset)


def _numbers(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{layout}", file.read(struct.calcsize(f"<{layout}")))


def _string(file: BinaryIO) -> str:
    (length,) = _numbers(file, "Q")
    return str(_numbers(file, f"{length}s")[0], "utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, count = _numbers(file, "IQ")
        return [_value(file, inner) for _ in range(count)]
    if kind not in _SCALARS:
        raise CheckpointError(f"metadata of type {kind} cannot be read; get the file again")
    return _numbers(file, _SCALARS[kind])[0]
