"""Registers, spills and loads of a compiled kernel: what its speed depends on, without a GPU.

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
    """Resources of one kernel.

    Attributes:
        registers: registers of a thread.
        stack_bytes: stack of a thread; above 0, registers are spilled to memory.
        wide_loads: instructions that load 16 bytes of global memory, or copy them to shared memory.
    """

    registers: int
    stack_bytes: int
    wide_loads: int


def parameter_bytes(code: bytes) -> list[int]:
    """Sizes of the arguments of a cubin's kernel, in order, in bytes.

    Raises:
        ValueError: if it holds no kernel.
    """
    parameters = _PARAMETER.findall(_disassemble(code, "cuobjdump", "-elf"))
    if not parameters:
        raise ValueError("the code holds no kernel")
    sizes = sorted((int(place, 16), int(size, 16)) for place, size in parameters)
    return [size for _, size in sizes]


def census(code: bytes) -> Census:
    """Reads the resources of a cubin with one kernel.

    Raises:
        ValueError: if it holds no kernel.
    """
    resources = _RESOURCES.search(_disassemble(code, "cuobjdump", "-res-usage"))
    if resources is None:
        raise ValueError("the code holds no kernel")
    loads = _LOAD.findall(_disassemble(code, "nvdisasm", "-c"))
    wide = sum(".128" in load for load in loads)
    return Census(int(resources[1]), int(resources[2]), wide)


def _disassemble(code: bytes, tool: str, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [str(_TOOLS / tool), option, file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout + done.stderr
