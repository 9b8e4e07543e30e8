"""Makes the wheels: one native library per platform, the same Python files around it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools import zig
from tools.wheels import licences
from tools.wheels.archive import read_wheel, tagged, write_wheel
from tools.wheels.platforms import Platform

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "moe_export" / "op" / "native"


@dataclass(frozen=True)
class Project:
    """A project whose wheel holds the library.

    Attributes:
        source: Folder of its pyproject.toml.
        folder: Folder of the wheel for the library.
    """

    source: Path
    folder: str


PROJECTS = {
    "moe-export": Project(ROOT, "moe_export/op"),
    "moe-export-ops": Project(ROOT / "ops", "moe_export_ops"),
}


def build_library(platform: Platform, build: Path) -> Path:
    """The stripped library for a platform, compiled with the paths of the sources left out."""
    values = zig.defines(platform.target, build / "zig")
    values["CMAKE_CXX_FLAGS"] = f"-g0 -ffile-prefix-map={ROOT}=."
    values |= dict.fromkeys(("CMAKE_MODULE_LINKER_FLAGS", "CMAKE_SHARED_LINKER_FLAGS"), "-s")
    folder = build / platform.tag
    zig.run_cmake(NATIVE, folder, values, ["moe_export_ops"])
    return folder / platform.library


def python_wheel(project: Project, build: Path) -> tuple[str, dict[str, bytes]]:
    """Metadata folder and files of a project's wheel without the library."""
    out = build / "python" / project.folder.replace("/", ".")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    options = ["-C", "wheel.cmake=false", "-w", str(out), str(project.source)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip wheel {project.source} failed:\n{done.stdout}{done.stderr}")
    return read_wheel(next(out.glob("*.whl")))


def make(
    platforms: list[Platform], out: Path, build: Path, say: Callable[[str], None]
) -> dict[tuple[str, str], Path]:
    """Writes the wheels; returns their files by project and platform tag."""
    out.mkdir(parents=True, exist_ok=True)
    wheels = {}
    parts = {name: python_wheel(project, build) for name, project in PROJECTS.items()}
    for platform in platforms:
        say(f"{platform.tag}: compiling")
        library = build_library(platform, build).read_bytes()
        for name, project in PROJECTS.items():
            info, files = parts[name]
            contents = files | {
                f"{project.folder}/{platform.library}": library,
                f"{info}/WHEEL": tagged(files[f"{info}/WHEEL"], platform.tag),
            }
            contents |= licences.linked(platform, info)
            path = out / f"{info.removesuffix('.dist-info')}-py3-none-{platform.tag}.whl"
            write_wheel(path, info, contents)
            wheels[name, platform.tag] = path
    return wheels
