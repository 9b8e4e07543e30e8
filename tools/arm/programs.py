"""The programs of `CMakeLists.txt`, cross-compiled and run in qemu."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools import zig

HERE = Path(__file__).parent
KERNELS = ("neon", "dotprod", "i8mm", "fhm")
"""Names of the Arm kernels, from plain to fast."""

FASTEST = {"cortex-a72": "neon", "cortex-a76": "dotprod", "max": "fhm"}
"""Kernels that emulated processors get: with Armv8-A alone, with dot products, with everything."""

PROCESSORS = tuple(FASTEST)

NO_EMULATOR = "qemu-aarch64 is not installed: it is in Debian's package qemu-user-static"

GNU = "aarch64-linux-gnu-g++"
_MUSL = zig.Target("aarch64-linux-musl", "Linux", "aarch64")


@dataclass(frozen=True)
class Found:
    """Tools of this machine.

    Attributes:
        emulator: qemu for programs of 64-bit Arm.
        compiler: Cross compiler of the GNU family; None takes zig.
    """

    emulator: str
    compiler: str | None


def find_emulator() -> str | None:
    """Finds qemu for programs of 64-bit Arm; None if it is not installed."""
    return shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def find() -> Found | str:
    """The tools that are needed, or one sentence about the one that is missing."""
    emulator = find_emulator()
    if emulator is None:
        return NO_EMULATOR
    compiler = shutil.which(GNU)
    if compiler is None and not zig.is_installed():
        return (
            f"neither {GNU} nor zig is installed: the former is in Debian's package "
            "g++-aarch64-linux-gnu, the latter in PyPI's package ziglang"
        )
    return Found(emulator, compiler)


def build(found: Found, folder: Path, targets: Sequence[str] = ("compare", "count")) -> None:
    """Compiles targets of `CMakeLists.txt` into `folder`."""
    if found.compiler is None:
        values = zig.defines(_MUSL, folder.parent / "zig")
    else:
        values = {
            "CMAKE_SYSTEM_NAME": "Linux",
            "CMAKE_SYSTEM_PROCESSOR": "aarch64",
            "CMAKE_CXX_COMPILER": found.compiler,
        }
    zig.run_cmake(HERE, folder, values, list(targets))


def run(found: Found, processor: str, program: Path, *words: str) -> str:
    """Output of a program on an emulated processor.

    Raises:
        RuntimeError: If it fails; with what it printed.
    """
    command = [found.emulator, "-cpu", processor, str(program), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
