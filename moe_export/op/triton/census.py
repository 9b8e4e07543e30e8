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


def census(code: bytes) -> Census:
    """Of a cubin with one kernel.

    Raises:
        ValueError: it is none.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        resources = _RESOURCES.search(_output("cuobjdump", "-res-usage", file.name))
        if resources is None:
            raise ValueError("the code holds no kernel")
        loads = _LOAD.findall(_output("nvdisasm", "-c", file.name))
    wide = sum(".128" in load for load in loads)
    return Census(int(resources[1]), int(resources[2]), wide)


def _output(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [_TOOLS / tool, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout + done.stderr
