"""The library for Windows on x86-64, loaded in Wine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tools import zig
from tools.wheels.platforms import Platform

MISSING = "the wheel for Windows is not loaded: Wine is not installed"
SOURCE = Path(__file__).with_name("describe.c")


@dataclass(frozen=True)
class Wine:
    """Wine, and the cache of the compiler for programs of Windows.

    Attributes:
        program: Program that starts programs of Windows.
        cache: Folder of zig's cache.
    """

    program: str
    cache: Path


def find(cache: Path) -> Wine | None:
    """Finds Wine; None if it is not installed."""
    program = shutil.which("wine64") or shutil.which("wine")
    return None if program is None else Wine(program, cache)


def describing(wine: Wine, wheel: Path, platform: Platform, folder: Path) -> list[str]:
    """Words that load a wheel's library and print what it says of its kernels.

    Args:
        wine: Wine and the cache.
        wheel: Wheel of moe-export-ops.
        platform: Platform of the wheel.
        folder: Folder for the library and the program that loads it.

    Raises:
        subprocess.CalledProcessError: The program does not compile.
    """
    file, program = folder / platform.library, folder / "describe.exe"
    file.write_bytes(library(wheel, platform))
    compile_program(platform, [str(SOURCE)], program, wine.cache)
    return [wine.program, str(program), str(file)]


def library(wheel: Path, platform: Platform) -> bytes:
    """The library in a wheel of moe-export-ops."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"moe_export_ops/{platform.library}")


def compile_program(platform: Platform, words: list[str], program: Path, cache: Path) -> None:
    """Compiles a program for a platform.

    Args:
        platform: Platform of the program.
        words: Sources and options of the compiler.
        program: File of the program.
        cache: Folder of zig's cache.

    Raises:
        subprocess.CalledProcessError: The program does not compile.
    """
    target = ["-target", platform.target.triple, "-O1", "-Wall", "-Wextra", "-Werror"]
    call_zig(["cc", *target, *words, "-o", str(program)], cache)


def call_zig(words: list[str], cache: Path) -> None:
    """Runs zig.

    Raises:
        subprocess.CalledProcessError: It fails.
    """
    environment = {zig.CACHE: str(cache), **os.environ}
    subprocess.run([sys.executable, "-m", "ziglang", *words], check=True, env=environment)


def environment(folder: Path) -> dict[str, str]:
    """Environment in which Wine keeps its files in a folder and writes no messages of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    return kept | {"WINEPREFIX": str(folder), "WINEDEBUG": "-all"}
