"""Source archive of moe-export, and the wheel that pip builds from it on this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tools.wheels.archive import read_wheel
from tools.wheels.make import PROJECTS, ROOT
from tools.wheels.platforms import PLATFORMS

FOLDER = PROJECTS["moe-export"].folder

_BUILD = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"


def source_archive(out: Path) -> Path:
    """Packs the sources; moe-export-ops has no archive, since its sources are moe-export's."""
    out.mkdir(parents=True, exist_ok=True)
    _call([sys.executable, "-c", _BUILD, str(out.resolve())])
    return next(out.glob("moe_export-*.tar.gz"))


def wheel_of(archive: Path, out: Path) -> Path:
    """Builds a wheel from the archive alone, with the C++ compiler of this machine."""
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    _call([sys.executable, "-m", "pip", "wheel", *options, str(archive)])
    return next(out.glob("moe_export-*.whl"))


def compare_with(wheel: Path, other: Path) -> None:
    """Compares a wheel from the archive with one from the checkout, but for tag and library.

    Raises:
        RuntimeError: A file is missing or differs; the message names it.
    """
    files, others = _portable_files(wheel), _portable_files(other)
    wrong = {name for name in files.keys() | others.keys() if files.get(name) != others.get(name)}
    if wrong:
        raise RuntimeError(
            f"{wheel.name}, built from the source archive, and {other.name} differ in "
            f"{', '.join(sorted(wrong))}"
        )


def _portable_files(wheel: Path) -> dict[str, bytes]:
    info, files = read_wheel(wheel)
    own = {f"{info}/WHEEL", *(f"{FOLDER}/{platform.library}" for platform in PLATFORMS)}
    return {name: data for name, data in files.items() if name not in own}


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stdout}{done.stderr}")
