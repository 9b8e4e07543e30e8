"""`python -m tools.arm.cycles`: bytes of weights a cycle in the kernels' loops, by llvm-mca.

The kernels are compiled to assembly by g++ for Arm. The innermost loop of a product with one row,
or with as many as `--rows` says, is read by llvm-mca (Debian's package llvm-19), which predicts its
cycles with LLVM's model of a processor, as if all data lay in the first-level cache. Nothing is
run, and memory is left out.
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
FORMATS = {
    "int8": ("FormatE3E", 8),
    "int4": ("FormatE4E", 4),
    "float16": ("Halves|7Float16", 16),
    "bfloat16": ("Bfloat16", 16),
}
"""Words that are in the names of a format's products, and its bits."""

PRODUCTS = {
    **dict.fromkeys(("fmla", "fmlal", "fmlal2"), 4),
    **dict.fromkeys(("smull", "smull2", "smlal", "smlal2"), 8),
    **dict.fromkeys(("sdot", "usdot"), 16),
    **dict.fromkeys(("ummla", "usmmla"), 32),
}
"""Products of a weight and a value of a row that an instruction computes."""


@dataclass(frozen=True)
class Kernel:
    """A file of kernels and the processors that take it.

    Attributes:
        name: Name of the kernel.
        source: File in `cpu`.
        flags: Options of the compiler for it.
        models: Processors, as LLVM names them.
        formats: Formats that it has products of.
    """

    name: str
    source: str
    flags: tuple[str, ...]
    models: tuple[str, ...]
    formats: tuple[str, ...] = tuple(FORMATS)


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
    Kernel(
        "fhm",
        "kernels_7_fhm.cc",
        ("-march=armv8.2-a+fp16fml", SCHEDULING),
        ("neoverse-v1", "neoverse-n2", "neoverse-v2"),
        ("float16",),
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


def products_in(loop: list[str]) -> int:
    """Products that a loop computes each time round."""
    return sum(PRODUCTS.get(line.split()[0], 0) for line in loop)


def loop_of(loops: dict[str, list[list[str]]], format_name: str, rows: int) -> list[str]:
    """The loop that multiplies rows by weights of a format, of one side.

    The last of the depth may have a loop of its own, with fewer products, and a loop may have
    copies; the longest is taken.

    Raises:
        RuntimeError: There is none.
    """
    # A product of one row may be inlined into the function that chooses by the number of rows,
    # whose first number is that of the sides.
    inlined = r"|by_countI.*ELi1ELi\d+EE" if rows == 1 else ""
    of_rows = re.compile(rf"runILi{rows}ELi1EE{inlined}")
    found = [
        loop
        for name, inner in loops.items()
        if re.search(FORMATS[format_name][0], name) and of_rows.search(name)
        for loop in inner
        if products_in(loop)
    ]
    if not found:
        raise RuntimeError(f"no loop multiplies {rows} rows by weights in {format_name}")
    return max(found, key=lambda loop: (products_in(loop), len(loop)))


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


def table(compiler: str, mca: str, rows: int) -> str:
    """A table in Markdown: a row for each kernel and processor."""
    head = [f"{name}: instructions, bytes, bytes a cycle" for name in FORMATS]
    lines = [f"| kernel | processor | {' | '.join(head)} |", "|---|---|" + "---|" * len(FORMATS)]
    for kernel in KERNELS:
        loops = inner_loops(assembly(compiler, kernel))
        for model in kernel.models:
            cells = []
            for name, (_, bits) in FORMATS.items():
                if name not in kernel.formats:
                    cells.append("–")
                    continue
                loop = loop_of(loops, name, rows)
                size = products_in(loop) * bits // 8 // rows
                cells.append(f"{len(loop)}, {size}, {size / cycles(mca, loop, model):.1f}")
            lines.append(f"| {kernel.name} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.arm.cycles", description=__doc__)
    parser.add_argument("--rows", type=int, default=1, choices=range(1, 7))
    rows = parser.parse_args(words).rows
    compiler = shutil.which(programs.GNU)
    mca = shutil.which("llvm-mca-19") or shutil.which("llvm-mca")
    if compiler is None or mca is None:
        print(f"{programs.GNU} or llvm-mca is not installed", file=sys.stderr)
        return 1
    print(table(compiler, mca, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
