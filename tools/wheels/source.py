"""Source archives of both projects, and the wheels that pip builds from them on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.wheels.archive import read_wheel
from tools.wheels.licences import LINKED
from tools.wheels.make import NATIVE, PROJECTS, ROOT
from tools.wheels.platforms import PLATFORMS

_BUILD = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"


def source_archive(project: str, out: Path) -> Path:
    """Packs the sources of a project, one of `PROJECTS`, into a folder of their own."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _BUILD, str(out.resolve())]
    if project == "moe-export":
        _call(command, ROOT)
    else:
        with tempfile.TemporaryDirectory() as folder:
            _call(command, with_native(PROJECTS[project].source, Path(folder) / "ops"))
    return next(out.glob(f"{project.replace('-', '_')}-*.tar.gz"))


def with_native(source: Path, copy: Path) -> Path:
    """Copies a project and, into it, the library's sources, which lie outside its folder."""
    unwanted = shutil.ignore_patterns(
        "__pycache__", *(f"*{Path(p.library).suffix}" for p in PLATFORMS)
    )
    shutil.copytree(source, copy, ignore=unwanted)
    shutil.copytree(NATIVE, copy / NATIVE.name)
    return copy


def wheel_of(archive: Path, out: Path) -> Path:
    """Builds a wheel from the archive alone, with the C++ compiler of this machine."""
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(out)]
    _call([sys.executable, "-m", "pip", "wheel", *options, str(archive)], ROOT)
    return next(out.glob(f"{archive.name.partition('-')[0]}-*.whl"))


def compare_with(wheel: Path, other: Path) -> None:
    """Compares a wheel from the archive with one of zig, but for tag, library and zig's licences.

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
    own = {f"{project.folder}/{p.library}" for project in PROJECTS.values() for p in PLATFORMS}
    own.add(f"{info}/WHEEL")
    zig = f"{info}/{LINKED}/"
    return {n: data for n, data in files.items() if n not in own and not n.startswith(zig)}


def _call(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:4])} failed:\n{done.stdout}{done.stderr}")
