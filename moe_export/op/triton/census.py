"""What the compiler made of a kernel: what can be known of its speed without a GPU.

Read from the binary by the disassembler that Triton brings.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_PARAMETER = re.compile(r"EIATTR_KPARAM_INFO.*?Ordinal\s*:\s*(\w+).*?Size\s*:\s*(\w+)", re.DOTALL)
_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\.\S*")


@dataclass(frozen=True)
class Census:
    """Of one kernel.

    Attributes:
        registers: of a thread.
        stack_bytes: of a thread; more than none means that registers are spilled to memory.
        wide_loads: instructions that load 16 bytes of global memory, or copy them to shared memory.
    """

    registers: int
    stack_bytes: int
    wide_loads: int


def parameter_bytes(code: bytes) -> list[int]:
    """The size of each argument that a cubin's kernel takes, in order.

    Raises:
        ValueError: it holds no kernel.
    """
    found = _PARAMETER.findall(_of_file(code, "cuobjdump", "-elf"))
    if not found:
        raise ValueError("the code holds no kernel")
    return [size for _, size in sorted((int(place, 16), int(size, 16)) for place, size in found)]


def census(code: bytes) -> Census:
    """Of a cubin with one kernel.

    Raises:
        ValueError: it is none.
    """
    resources = _RESOURCES.search(_of_file(code, "cuobjdump", "-res-usage"))
    if resources is None:
        raise ValueError("the code holds no kernel")
    loads = _LOAD.findall(_of_file(code, "nvdisasm", "-c"))
    wide = sum(".128" in load for load in loads)
    return Census(int(resources[1]), int(resources[2]), wide)


def _of_file(code: bytes, tool: str, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(_TOOLS / tool), option, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr
