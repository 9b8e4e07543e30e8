"""Environments of the applications: virtual environments of Python and folders of npm."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

DRIVERS = Path(__file__).parent / "drivers"
EXAMPLES = Path(__file__).parents[2] / "examples"
MARK = "complete"
INSTALL_S = 900


def python_environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Python of a virtual environment with some packages, which is made once.

    Args:
        folder: Folder of the environment.
        packages: Requirements, as pip takes them.
    """
    python = folder / "bin" / "python"
    if not _is_complete(folder, packages):
        shutil.rmtree(folder, ignore_errors=True)
        _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", *packages])
        _complete(folder, packages)
    return python


def node_environment(folder: Path, packages: tuple[str, ...]) -> Path:
    """Folder with packages of npm, which is made once, and with our scripts beside them."""
    if not _is_complete(folder, packages):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text('{"private": true, "type": "module"}\n')
        # Without scripts, one of which downloads libraries for CUDA.
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        _call(["npm", "install", "--prefix", str(folder), *options, *packages])
        _complete(folder, packages)
    for script in (*DRIVERS.glob("*.mjs"), *(EXAMPLES / "node").glob("*.mjs")):
        shutil.copyfile(script, folder / script.name)
    return folder


def programs(folder: Path, library: Path) -> Path:
    """Folder with the examples in C and C++, linked to a library of ONNX Runtime."""
    define = f"-DONNXRUNTIME_LIBRARY={library}"
    _call(["cmake", "-S", str(EXAMPLES), "-B", str(folder), define])
    _call(["cmake", "--build", str(folder)])
    return folder


def source_package(cache: Path, requirement: str) -> Path:
    """Folder of an unpacked source archive from the package index, which is made once."""
    folder = cache / f"source-{requirement}"
    if not _is_complete(folder, (requirement,)):
        shutil.rmtree(folder, ignore_errors=True)
        # What builds the archive comes as wheels: `:all:` would compile CMake.
        sources = ["--no-binary", requirement.partition("==")[0]]
        options = ["--quiet", "--no-deps", *sources, "--dest", str(folder)]
        _call([sys.executable, "-m", "pip", "download", *options, requirement])
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as content:
            content.extractall(folder, filter="data")
        archive.unlink()
        _complete(folder, (requirement,))
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def library_of(python: Path) -> Path:
    """The library in the wheel of ONNX Runtime of an environment."""
    pattern = "lib/*/site-packages/onnxruntime/capi/libonnxruntime.so.*"
    libraries = list(python.parents[1].glob(pattern))
    if not libraries:
        raise OSError("the wheel of this version has no libonnxruntime.so")
    return libraries[0]


def _is_complete(folder: Path, packages: tuple[str, ...]) -> bool:
    mark = folder / MARK
    return mark.exists() and json.loads(mark.read_text()) == list(packages)


def _complete(folder: Path, packages: tuple[str, ...]) -> None:
    (folder / MARK).write_text(json.dumps(packages))


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0].rsplit('/', 1)[-1]}: no end within {INSTALL_S} s") from error
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise OSError(f"{command[0].rsplit('/', 1)[-1]}: {words[-1] if words else 'no message'}")
