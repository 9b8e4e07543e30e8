"""Writer of GGUF files, one tensor in memory at a time.

Layout: magic, version, numbers of tensors and of metadata entries; the entries; name, shape, type
and offset of each tensor; padding; the data. Documented in docs/gguf.md of ggml.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALIGNMENT = 32
VERSION = 3
FLOAT32, BFLOAT16 = 0, 30
"""Numbers of types."""


@dataclass(frozen=True)
class Stored:
    """A tensor of a file.

    Attributes:
        shape: Shape in numpy's order of axes.
        kind: Number of the type.
        size_bytes: Bytes of the content.
        content: Function that returns the content.
    """

    shape: tuple[int, ...]
    kind: int
    size_bytes: int
    content: Callable[[], bytes]


def write_gguf(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
    """Writes a file.

    Args:
        path: Path of the file.
        facts: Metadata by key: texts, floats, non-negative integers, and lists of one of these.
        tensors: Tensors by name.
    """
    head = b"GGUF" + struct.pack("<IQQ", VERSION, len(tensors), len(facts))
    head += b"".join(_string(key) + _value(content) for key, content in facts.items())
    offset = 0
    for name, tensor in tensors.items():
        axes = tuple(reversed(tensor.shape))
        head += _string(name) + struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
        head += struct.pack("<IQ", tensor.kind, offset)
        offset += _padded(tensor.size_bytes)
    with path.open("wb") as file:
        file.write(head.ljust(_padded(len(head)), b"\0"))
        for tensor in tensors.values():
            file.write(tensor.content().ljust(_padded(tensor.size_bytes), b"\0"))


def _padded(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value(content: Any) -> bytes:
    """A metadata value after its type."""
    if isinstance(content, str):
        return struct.pack("<I", 8) + _string(content)
    if isinstance(content, list):
        items = [_value(item) for item in content]
        count = struct.pack("<Q", len(items))
        return struct.pack("<I", 9) + items[0][:4] + count + b"".join(item[4:] for item in items)
    kind, code = (6, "f") if isinstance(content, float) else (4, "I")
    return struct.pack(f"<I{code}", kind, content)
