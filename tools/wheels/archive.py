"""Wheels as archives whose bytes depend on their contents alone."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

_DATE = (1980, 1, 1, 0, 0, 0)
_MODES = {".so": 0o755, ".dll": 0o755, ".dylib": 0o755}


def read_wheel(path: Path) -> tuple[str, dict[str, bytes]]:
    """Name of the folder of metadata, and every file but RECORD."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    record = next(name for name in contents if name.endswith(".dist-info/RECORD"))
    del contents[record]
    return record.rpartition("/")[0], contents


def tagged(metadata: bytes, platform: str) -> bytes:
    """The file WHEEL with the tag of a platform; the library makes the wheel one of platforms."""
    lines = [line for line in metadata.decode().splitlines() if line]
    kept = [line for line in lines if not line.startswith(("Tag:", "Root-Is-Purelib:"))]
    return "\n".join([*kept, "Root-Is-Purelib: false", f"Tag: py3-none-{platform}", ""]).encode()


def write_wheel(path: Path, info: str, contents: Mapping[str, bytes]) -> None:
    """Writes a wheel with its RECORD, in the order of names and without dates."""
    record = [f"{name},{_digest(data)},{len(data)}" for name, data in sorted(contents.items())]
    record.append(f"{info}/RECORD,,")
    files = {**dict(sorted(contents.items())), f"{info}/RECORD": "\n".join([*record, ""]).encode()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # as written on Unix, where modes have a meaning
            entry.external_attr = (0o100000 | _MODES.get(Path(name).suffix, 0o644)) << 16
            archive.writestr(entry, data)


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"
