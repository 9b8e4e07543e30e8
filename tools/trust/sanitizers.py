"""The operator's library under AddressSanitizer and UBSan, loaded in ONNX Runtime.

Nodes of the table of the operator and hostile nodes run with each kernel of this processor, in
processes into which the sanitizers are loaded first. Anything that they find ends a process. That
they would find something is shown before: an array shorter than its shape is given to the library.
ONNX Runtime and Python are not compiled with the sanitizers; what they allocate is watched all the
same, so that the library cannot read or write beyond a tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from moe_export.op.library import LIBRARY_NAME
from moe_export.testing.native_executors import KERNELS
from tools.cmake import TESTS, build
from tools.trust.kinds.nodes import RAN, REFUSED

ROOT = Path(__file__).parents[2]
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")
"""Libraries that must be loaded before the library; the last for exceptions of ONNX Runtime."""

AT_ONCE = 250
"""Hostile nodes of one process."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the campaign."""
    parser.add_argument("--nodes", type=int, default=2000, help="hostile nodes (default: 2000)")
    parser.add_argument("--start", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--step", type=int, default=1, help="use every such pair of the table")
    parser.add_argument("--home", type=Path, help="folder of the build, to compile only changes")


def campaign(arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds the library, shows that a fault is found, and runs the nodes."""
    with tempfile.TemporaryDirectory(prefix="sanitizers-") as folder:
        home = arguments.home or Path(folder)
        library = sanitized_library(home.absolute())
        assert_finds_a_fault(library)
        table, hostile, bad = Counter[str](), Counter[str](), 0
        for kernel in KERNELS:
            counts, said = in_process(library, kernel, "table", 0, arguments.step)
            table += counts
            bad += _told(said)
        for number, first in enumerate(range(0, arguments.nodes, AT_ONCE)):
            start, count = arguments.start + first, min(AT_ONCE, arguments.nodes - first)
            kernel = KERNELS[number % len(KERNELS)]
            counts, said = in_process(library, kernel, "hostile", start, count)
            hostile += counts
            bad += _told(said)
    return {
        "kernels": list(KERNELS),
        "table": table[RAN],
        "hostile": {RAN: hostile[RAN], REFUSED: hostile[REFUSED]},
        "bad": bad,
    }


def _told(said: str) -> int:
    if said:
        print(said, flush=True)
    return int(bool(said))


def sanitized_library(home: Path) -> Path:
    """Compiles the library with the sanitizers; returns its file."""
    return build(TESTS, "moe_export_ops", home) / "native" / LIBRARY_NAME


def assert_finds_a_fault(library: Path) -> None:
    """Raises RuntimeError if the sanitizers find nothing in a call that reads beyond an array."""
    _, said = in_process(library, KERNELS[0], "fault")
    if "heap-buffer-overflow" not in said:
        raise RuntimeError(f"the sanitizers see no fault, so they prove nothing\n{said}")


def in_process(library: Path, kernel: str, *words: Any) -> tuple[Counter[str], str]:
    """Runs `tools.trust.sanitized` under the sanitizers.

    Returns:
        Counts of what was done, and the end of the output if the process ended badly.
    """
    settings = os.environ | {
        "LD_PRELOAD": " ".join(map(_runtime, RUNTIMES)),
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python, which frees nothing at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "MOE_EXPORT_KERNEL": kernel,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tools.trust.sanitized", library, *map(str, words)],
        cwd=ROOT,
        env=settings,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return Counter(json.loads(done.stdout.splitlines()[-1])), ""
    return Counter(), done.stdout[-500:] + done.stderr[-6000:]


def _runtime(name: str) -> str:
    """File of a library that belongs to the compiler."""
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-print-file-name={name}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return str(Path(found).resolve())
