"""Reading and writing of artifacts: JSON with a schema version, and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from moe_export.checkpoint import write_json
from moe_export.errors import ArtifactError
from moe_export.system.disk import disk_error

SCHEMA = 1
"""Version of every JSON artifact; a file of another one is refused."""


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON artifact with its schema version."""
    write_json(path, {"schema": SCHEMA} | content)


def load_json(path: Path) -> dict[str, Any]:
    """Reads a JSON artifact.

    Raises:
        ArtifactError: it is missing, damaged or of another schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(
            f"{path} has schema {found!r}, this version of moe-export reads {SCHEMA}; "
            "use the version that wrote it, or another run directory"
        )
    return content


def save_tensors(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Writes a safetensors file.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, path) from error


def load_tensors(path: Path, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Reads a safetensors file.

    Args:
        path: the file.
        needed: names of tensors that must be in it.

    Raises:
        ArtifactError: the file is missing or damaged, or lacks a tensor.
    """
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run its stage again") from error
    absent = [name for name in needed if name not in tensors]
    if absent:
        raise ArtifactError(f"{path}: {absent[0]} is not in it; run its stage again")
    return tensors
