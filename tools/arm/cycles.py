"""`python -m tools.arm.cycles`: bytes of weights a cycle in the loops of one row, by llvm-mca.

The kernels are compiled to assembly by g++ for Arm. The innermost loop of a product with one row is
read by llvm-mca (Debian's package llvm-19), which predicts its cycles with LLVM's model of a
processor, as if all data lay in the first-level cache. Nothing is run, and memory is left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from tools.arm import programs

NATIVE = programs.HERE.parents[1] / "moe_export" / "op" / "native"
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", f"-I{NATIVE}", "-S")
SCHEDULING = "--param=sched-pressure-algorithm=1"  # as arm.cmake says
FORMATS = {"int8": (3, 8), "int4": (4, 4)}
"""Number of each format in `common/formats.h`, and its bits."""

# A product of one row may be inlined into the function that chooses by the number of rows, whose
# first number is that of the sides.
ONE_ROW = re.compile(r"by_countI.*ELi1ELi\d+EE|runILi1ELi1EE")
"""Names of products with one side that multiply one row."""

CODES = {"sdot": 16, "usdot": 16, "smull": 8, "smull2": 8, "smlal": 8, "smlal2": 8}
"""Codes that an instruction multiplies."""


@dataclass(frozen=True)
class Kernel:
    """A file of kernels and the processors that take it.

    Attributes:
        name: Name of the kernel.
        source: File in `cpu`.
        flags: Options of the compiler for it.
        models: Processors, as LLVM names them.
    """

    name: str
    source: str
    flags: tuple[str, ...]
    models: tuple[str, ...]


KERNELS = (
    Kernel("neon", "kernels_4_neon.cc", (), ("cortex-a72",)),
    Kernel(
        "dotprod",
        "kernels_5_dotprod.cc",
        ("-march=armv8.2-a+dotprod", SCHEDULING),
        ("cortex-a76", "neoverse-n1"),
    ),
    Kernel(
        "i8mm",
        "kernels_6_i8mm.cc",
        ("-march=armv8.2-a+dotprod+i8mm", SCHEDULING),
        ("neoverse-v1", "neoverse-n2", "neoverse-v2"),
    ),
)


def inner_loops(assembly: str) -> dict[str, list[list[str]]]:
    """Instructions of the loops that hold no label of their own, by the function's name."""
    lines = assembly.splitlines()
    places: dict[str, int] = {}
    loops: dict[str, list[list[str]]] = {}
    function = ""
    for place, line in enumerate(lines):
        if label := re.match(r"(\.?\w+):", line):
            places[label[1]] = place
            function = function if label[1].startswith(".") else label[1]
        branch = re.match(r"\s+(?:b[a-z.]*|cbn?z|tbn?z)\s.*?(\.L\w+)\s*$", line)
        if branch and branch[1] in places:
            body = lines[places[branch[1]] + 1 : place + 1]
            if not any(re.match(r"\.L\w+:", inner) for inner in body):
                code = [inner for inner in body if re.match(r"\s+[a-z]", inner)]
                loops.setdefault(function, []).append(code)
    return loops


def codes_of(loop: list[str]) -> int:
    """Codes that a loop multiplies each time round."""
    return sum(CODES.get(line.split()[0], 0) for line in loop)


def one_row(loops: dict[str, list[list[str]]], number: int) -> list[str]:
    """The loop that multiplies codes of a format with one row; the longest if it has copies."""
    found = [
        loop
        for name, inner in loops.items()
        if f"FormatE{number}E" in name and ONE_ROW.search(name)
        for loop in inner
        if codes_of(loop)
    ]
    if len({codes_of(loop) for loop in found}) != 1:
        raise RuntimeError(f"no loop, or different ones, multiply one row of format {number}")
    return max(found, key=len)


def cycles(mca: str, loop: list[str], model: str) -> float:
    """Cycles of a turn of a loop on a processor, by llvm-mca."""
    options = ["-mtriple=aarch64-linux-gnu", f"-mcpu={model}", "-iterations=100"]
    done = subprocess.run(
        [mca, *options], input="\n".join([*loop, ""]), capture_output=True, text=True, check=True
    )
    total = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    assert total is not None, done.stdout
    return int(total[1]) / 100


def assembly(compiler: str, kernel: Kernel) -> str:
    """Assembly of a file of kernels."""
    source = NATIVE / "cpu" / kernel.source
    command = [compiler, *FLAGS, *kernel.flags, str(source), "-o", "-"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(compiler: str, mca: str) -> str:
    """A table in Markdown: a row for each kernel and processor."""
    head = [f"{name}: instructions, bytes, bytes a cycle" for name in FORMATS]
    lines = [f"| kernel | processor | {' | '.join(head)} |", "|---|---|" + "---|" * len(FORMATS)]
    for kernel in KERNELS:
        loops = inner_loops(assembly(compiler, kernel))
        chosen = {name: one_row(loops, number) for name, (number, _) in FORMATS.items()}
        for model in kernel.models:
            cells = []
            for name, loop in chosen.items():
                size = codes_of(loop) * FORMATS[name][1] // 8
                cells.append(f"{len(loop)}, {size}, {size / cycles(mca, loop, model):.1f}")
            lines.append(f"| {kernel.name} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Prints the table."""
    argparse.ArgumentParser(prog="python -m tools.arm.cycles", description=__doc__).parse_args(
        words
    )
    compiler = shutil.which(programs.GNU)
    mca = shutil.which("llvm-mca") or shutil.which("llvm-mca-19")
    if compiler is None or mca is None:
        print(f"{programs.GNU} or llvm-mca is not installed", file=sys.stderr)
        return 1
    print(table(compiler, mca))
    return 0


if __name__ == "__main__":
    sys.exit(main())
