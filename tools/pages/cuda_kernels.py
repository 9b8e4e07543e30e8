"""The CUDA kernels as compiled: registers, spills and blocks, from the manifest of the build.

Needs no GPU and compiles nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from moe_export.op.triton.build import ARCHITECTURES, CUBINS, variants
from moe_export.op.triton.device_layout import codes_per_byte
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from tools.pages.page import write_page

SHOWN = (80, 90, 120)
REGISTERS = 65536
RESERVED_KIB = 1
"""Shared memory that each block takes besides its own."""
MULTIPROCESSOR = {
    80: (2048, 164),
    86: (1536, 100),
    89: (1536, 100),
    90: (2048, 228),
    100: (2048, 228),
    120: (1536, 100),
}
"""Threads and KiB of shared memory (CUDA C++ Programming Guide, technical specifications)."""

INTRODUCTION = """\
Made by `python -m tools.pages cuda_kernels` from the
[manifest](../../moe_export/op/native/cuda/cubins/manifest.json) that the build writes; **none of it
was measured on a GPU**. It is what bounds the speed of a kernel before it has run: registers
spilled to memory (`tests/cuda/test_build.py` holds that there are next to none), how many blocks
fit on a multiprocessor, and how many KiB of weights these ask for before they wait. An H200 reads
4.8 TB/s with 132 multiprocessors (NVIDIA's data sheet): 36 KiB for each in a microsecond, and
memory takes somewhat less than one to answer.

A block is pairs of a token and an expert by rows of the weights by values, or bytes of codes, taken
at a time. Kernels of tiles copy ahead to shared memory, so that what is under way are the buffers
there; those of rows load to registers."""


def blocks_per_multiprocessor(architecture: int, kernel: Mapping[str, Any]) -> int:
    """Blocks of a kernel that registers, shared memory and threads of a multiprocessor allow."""
    threads, shared_kib = MULTIPROCESSOR[architecture]
    by_registers = REGISTERS // (-(-kernel["registers"] // 8) * 8 * kernel["threads"])
    by_shared = int(shared_kib // (kernel["shared_bytes"] / 1024 + RESERVED_KIB))
    return min(by_registers, by_shared, threads // kernel["threads"])


def rows_of(manifest: Mapping[str, Any], architecture: int) -> list[list[str]]:
    """Cells of the table, a row for each kernel that multiplies."""
    kernels = manifest["architectures"][f"sm_{architecture}"]["kernels"]
    rows = []
    for variant in variants(architecture):
        if variant.format_name is None:
            continue
        kernel, shape = kernels[variant.key], variant.shape
        blocks = blocks_per_multiprocessor(architecture, kernel)
        step = shape.rows * shape.columns * _value_bytes(variant.format_name)
        step *= 2 if variant.key.startswith("gate_up") else 1
        under_way = kernel["shared_bytes"] if shape.pairs > 1 else step
        rows.append(
            [
                variant.key,
                f"{shape.pairs} x {shape.rows} x {shape.columns}",
                f"{kernel['threads']}",
                f"{kernel['registers']}",
                f"{kernel['stack_bytes']}",
                f"{kernel['shared_bytes'] / 1024:.1f}",
                f"{blocks}",
                f"{blocks * under_way / 1024:.0f}",
            ]
        )
    return rows


def _value_bytes(format_name: str) -> int:
    if codes_per_byte(format_name) == 2 or format_name in ("int8", "uint8"):
        return 1
    return 4 if format_name == "float32" else 2


def markdown(manifest: Mapping[str, Any]) -> str:
    """The page from the manifest, with a table for each of `SHOWN`."""
    heads = ["kernel", "block", "threads", "registers", "spilled bytes", "shared KiB"]
    heads += ["blocks", "KiB under way"]
    parts = ["# The CUDA kernels as compiled", INTRODUCTION]
    for architecture in SHOWN:
        parts += [f"## sm_{architecture}", table(Table(heads, rows_of(manifest, architecture), 2))]
    others = ", ".join(f"sm_{number}" for number in ARCHITECTURES if number not in SHOWN)
    parts.append(f"{others} are compiled alike; their figures are in the manifest.")
    return "\n\n".join(parts) + "\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the page has no options."""


def make(arguments: argparse.Namespace) -> None:  # noqa: ARG001 - as every page
    """Writes the page of the manifest."""
    manifest = json.loads((CUBINS / "manifest.json").read_text(encoding="utf-8"))
    write_page("cuda_kernels", None, markdown(manifest))
