r"""File of an architecture's kernels, as the native library reads it.

moe_export cubins 1 <bytes of all code> <number of kernels>\n
<key> <name> <shared bytes> <threads> <pairs> <rows> <offset> <bytes>\n   for each kernel
the code of all kernels one after the other, as one zlib stream (RFC 1950)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

MAGIC = "moe_export cubins 1"


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
        key: name under which the library looks it up, such as `gate_up_tiles.float16.int4.128`.
        name: name of the function in the code.
        shared_bytes: dynamic shared memory of a block.
        threads: threads of a block.
        pairs: pairs that a program takes.
        rows: rows of the weights that a program takes.
        code: cubin.
    """

    key: str
    name: str
    shared_bytes: int
    threads: int
    pairs: int
    rows: int
    code: bytes


def encode(kernels: Sequence[Kernel]) -> bytes:
    """Content of a file that holds the kernels."""
    lines = [f"{MAGIC} {sum(len(k.code) for k in kernels)} {len(kernels)}"]
    offset = 0
    for k in kernels:
        sizes = f"{k.shared_bytes} {k.threads} {k.pairs} {k.rows} {offset} {len(k.code)}"
        lines.append(f"{k.key} {k.name} {sizes}")
        offset += len(k.code)
    code = b"".join(k.code for k in kernels)
    return ("\n".join(lines) + "\n").encode() + zlib.compress(code, 9)


def decode(content: bytes) -> list[Kernel]:
    """Kernels of a file; the inverse of `encode`.

    >>> kernel = Kernel("k.float16", "k", 0, 128, 1, 8, b"code")
    >>> decode(encode([kernel])) == [kernel]
    True
    """
    head, _, rest = content.partition(b"\n")
    count = int(head.split()[-1])
    *lines, compressed = rest.split(b"\n", count)
    code = zlib.decompress(compressed)
    kernels = []
    for line in lines:
        key, name, *sizes = line.decode().split()
        shared, threads, pairs, rows, offset, size = map(int, sizes)
        part = code[offset : offset + size]
        kernels.append(Kernel(key, name, shared, threads, pairs, rows, part))
    return kernels
