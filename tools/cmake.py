"""Builds the programs and libraries of the tests with CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "native"
LIBRARY = Path(__file__).parents[1] / "moe_export" / "op" / "native"


def build(source: Path, target: str, folder: Path, defines: dict[str, str] | None = None) -> Path:
    """Compiles a target of a CMake project.

    Args:
        source: Folder of the project's CMakeLists.txt.
        target: Name of the target.
        folder: Folder for the results; used again, only changes are compiled.
        defines: Variables of the project that are set.

    Returns:
        `folder`.
    """
    cmake, ninja = _tool("cmake"), _tool("ninja")
    values = [f"-D{name}={value}" for name, value in (defines or {}).items()]
    for command in (
        [
            cmake,
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            *values,
            "-S",
            source,
            "-B",
            folder,
        ],
        [cmake, "--build", folder, "--target", target, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _tool(name: str) -> str:
    """A program of this environment, which need not be activated, or else of the system."""
    found = shutil.which(
        name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    assert found is not None, f"{name} is not installed; the extra [test] brings it"
    return found
