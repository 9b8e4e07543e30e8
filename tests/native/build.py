"""Builds what the tests run, by CMake."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TESTS = Path(__file__).parent
LIBRARY = Path(__file__).parents[2] / "moe_export" / "op" / "native"


def build(source: Path, target: str, folder: Path) -> Path:
    """Compiles a target of a CMake project.

    Args:
        source: of its CMakeLists.txt.
        target: its name.
        folder: for all that is made; used again, only what changed is compiled.

    Returns:
        `folder`.
    """
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in (
        ["cmake", *generator, "-S", source, "-B", folder],
        ["cmake", "--build", folder, "--target", target, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder
