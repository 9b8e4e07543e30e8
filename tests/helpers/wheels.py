"""Wheels of moe-export-ops that hold made-up libraries."""

from __future__ import annotations

import zipfile
from pathlib import Path


def ops_wheel(folder: Path, tag: str, files: dict[str, bytes], version: str = "0.3.0") -> Path:
    """A wheel with a platform tag and some files."""
    path = folder / f"moe_export_ops-{version}-py3-none-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path
