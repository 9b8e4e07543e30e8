"""zig from the package `ziglang` as a cross compiler for CMake."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

CACHE = "ZIG_GLOBAL_CACHE_DIR"


@dataclass(frozen=True)
class Target:
    """A platform to compile for.

    Attributes:
        triple: Platform as zig names it, such as `aarch64-linux-gnu.2.28`.
        system: CMake's name of the operating system.
        processor: CMake's name of the processor family.
    """

    triple: str
    system: str
    processor: str


def is_installed() -> bool:
    """True if the package `ziglang` can be imported."""
    return find_spec("ziglang") is not None


def _program(folder: Path, name: str, words: list[str]) -> Path:
    """A shell script that runs zig with some words before its own."""
    path = folder / name
    command = shlex.join([sys.executable, "-m", "ziglang", *words])
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def defines(target: Target, folder: Path) -> dict[str, str]:
    """Variables with which CMake compiles for a target; writes the scripts that they name."""
    folder.mkdir(parents=True, exist_ok=True)
    compiler = _program(folder, f"c++-{target.triple}", ["c++", "-target", target.triple])
    archiver = _program(folder, "ar", ["ar"])
    return {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_CXX_COMPILER": str(compiler),
        "CMAKE_AR": str(archiver),
        "CMAKE_RANLIB": str(_program(folder, "ranlib", ["ranlib"])),
    }


def run_cmake(
    source: Path, build: Path, values: dict[str, str], programs: list[str], workers: int = 2
) -> None:
    """Configures a project and builds some of its targets.

    Raises:
        RuntimeError: If CMake or the compiler fails; with what it printed.
    """
    variables = [f"-D{name}={value}" for name, value in values.items()]
    names = [word for program in programs for word in ("--target", program)]
    environment = {CACHE: str(build.parent / "zig-cache"), **os.environ}
    for command in (
        ["cmake", *variables, "-S", str(source), "-B", str(build)],
        ["cmake", "--build", str(build), "--parallel", str(workers), *names],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
