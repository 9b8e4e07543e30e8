"""Instructions that a product executes per byte of weights, counted in emulation."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from tools.arm import programs

FORMATS = ("int4", "uint4", "int8", "uint8", "nf4", "float16", "bfloat16", "float32")
KERNELS = ("portable", *programs.KERNELS)
ROWS = (1, 6, 8)
MOST = {
    ("dotprod", "int4", 1): 0.43,
    ("dotprod", "int4", 6): 0.31,
    ("dotprod", "int8", 1): 0.27,
    ("dotprod", "int8", 6): 0.16,
    ("fhm", "float16", 1): 0.21,
    ("fhm", "float16", 6): 0.18,
}
"""Most instructions per byte and row that the tests allow: a tenth above those of GCC 12."""

_BLOCKS = 4
# Structures of the Arm kernels; functions of the portable ones, and the dot product they call.
_OF_A_PRODUCT = re.compile(r"Product|_product|7productI|3dotI")


def _one_at_a_time(emulator: str) -> str:
    """Option with which qemu translates one instruction at a time; 8.1 renamed it."""
    text = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+)\.(\d+)", text.stdout)
    is_new = found is not None and (int(found[1]), int(found[2])) >= (8, 1)
    return "-one-insn-per-tb" if is_new else "-singlestep"


def kernels_only(symbols: str) -> list[str]:
    """Options with which qemu logs the products' own instructions.

    The start of the program and the making of the panel are nearly all that it executes.

    Args:
        symbols: Output of `nm -S`: address, size, kind and name of each function.
    """
    lines = [line.split() for line in symbols.splitlines() if _OF_A_PRODUCT.search(line)]
    places = [(int(line[0], 16), int(line[1], 16)) for line in lines if len(line) == 4]
    if not places:
        return []
    end = max(address + size for address, size in places)
    return ["-dfilter", f"{min(places)[0]:#x}..{end:#x}"]


def filter_of(program: Path) -> list[str]:
    """Options of `kernels_only` for a program; none without `nm`, which takes ten times as long."""
    nm = shutil.which("nm")
    if nm is None:
        return []
    command = [nm, "-S", str(program)]
    return kernels_only(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _executed(found: programs.Found, program: Path, words: list[str]) -> tuple[int, int]:
    """Instructions that a run executes, and the bytes of the panel that it prints."""
    # With one instruction a block and no jumps between blocks, each instruction logs a line.
    options = ["-cpu", "max", _one_at_a_time(found.emulator), "-d", "exec,nochain"]
    command = [found.emulator, *options, *filter_of(program), str(program), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = sum(1 for _ in process.stderr)
        size = int(process.stdout.read())
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return lines, size


def per_byte(
    found: programs.Found, program: Path, kernel: str, format_name: str, rows: int
) -> float:
    """Instructions per byte of weights and row of activations."""
    words = [kernel, format_name, str(rows), str(_BLOCKS)]
    once, size = _executed(found, program, [*words, "1"])
    twice, _ = _executed(found, program, [*words, "2"])
    if twice == once:
        raise RuntimeError(f"the symbols of {kernel}'s products are not found in {program}")
    return (twice - once) / size / rows


def table(found: programs.Found, program: Path, formats: tuple[str, ...]) -> str:
    """A table in Markdown: kernels across, formats and rows down."""
    lines = [f"| format | rows | {' | '.join(KERNELS)} |", "|---" * (2 + len(KERNELS)) + "|"]
    for name in formats:
        for rows in ROWS:
            numbers = (per_byte(found, program, kernel, name, rows) for kernel in KERNELS)
            lines.append(f"| {name} | {rows} | {' | '.join(f'{n:.2f}' for n in numbers)} |")
    return "\n".join(lines)
