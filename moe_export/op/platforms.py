"""Platforms of the native library: names of its file, installed and beside exported models."""

from __future__ import annotations

import platform
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_export.errors import DependencyError

PlatformName = Literal["linux_x86_64", "linux_aarch64", "win_amd64", "win_arm64", "macosx_arm64"]

PACKAGE = "moe_export_ops"
"""Python package that holds the library alone."""


@dataclass(frozen=True)
class Platform:
    """A platform that the library is built for.

    Attributes:
        name: Our name, as in `export.platforms`.
        words: System and processor as Python's module `platform` gives them.
        library: Name of the library's file.
        tags: Pattern of the platform tags of wheels.
    """

    name: PlatformName
    words: str
    library: str
    tags: str

    @property
    def exported(self) -> str:
        """Name of the file beside a model that has libraries of several platforms."""
        path = Path(self.library)
        return f"{path.stem}-{self.name}{path.suffix}"


PLATFORMS: tuple[Platform, ...] = (
    Platform("linux_x86_64", "Linux-x86_64", "libmoe_export_ops.so", r"(many)?linux.*_x86_64"),
    Platform("linux_aarch64", "Linux-aarch64", "libmoe_export_ops.so", r"(many)?linux.*_aarch64"),
    Platform("win_amd64", "Windows-AMD64", "moe_export_ops.dll", "win_amd64"),
    Platform("win_arm64", "Windows-ARM64", "moe_export_ops.dll", "win_arm64"),
    Platform("macosx_arm64", "Darwin-arm64", "libmoe_export_ops.dylib", r"macosx_.*_arm64"),
)
"""Platforms by name."""


def library_name(system: str = sys.platform) -> str:
    """Name of the library's file on a system, as `sys.platform` names it."""
    return {"win32": "moe_export_ops.dll", "darwin": "libmoe_export_ops.dylib"}.get(
        system, "libmoe_export_ops.so"
    )


def this_platform() -> Platform | None:
    """Platform of this process; None if no library is made for it."""
    words = f"{platform.system()}-{platform.machine()}"
    return next((known for known in PLATFORMS if known.words == words), None)


def named(name: PlatformName) -> Platform:
    """Platform with a name."""
    return next(known for known in PLATFORMS if known.name == name)


def library_in_wheels(wanted: Platform, folder: Path | None) -> bytes:
    """The library of a platform from a wheel of moe-export-ops.

    Args:
        wanted: Platform of the library.
        folder: Folder of the wheels; None if the recipe names none.

    Raises:
        DependencyError: The folder has no wheel of the platform, or the wheel no library.
    """
    pattern = re.compile(rf"{PACKAGE}-.*-py3-none-{wanted.tags}\.whl")
    wheels = [] if folder is None else sorted(folder.glob("*.whl"))
    found = [path for path in wheels if pattern.fullmatch(path.name)]
    if not found:
        place = "export.wheels names no folder" if folder is None else f"{folder} has no wheel"
        raise DependencyError(
            f"the operator library for {wanted.name} is missing: {place}; put the wheel of "
            f"moe-export-ops for {wanted.name} into a folder and name it in export.wheels, or take "
            "the platform out of export.platforms"
        )
    try:
        with zipfile.ZipFile(found[-1]) as archive:
            return archive.read(f"{PACKAGE}/{wanted.library}")
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DependencyError(
            f"{found[-1]} holds no {PACKAGE}/{wanted.library} ({error}); copy the wheel again"
        ) from error
