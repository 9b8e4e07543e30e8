"""Reading and writing of artifacts: JSON records with a schema version, and tensors.

Every JSON artifact is a class derived from `JsonArtifact`. Its file name is written once, there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from moe_export.checkpoint import write_json
from moe_export.errors import ArtifactError
from moe_export.system.disk import disk_error

SCHEMA = 1
"""Schema version of artifacts that do not state one of their own."""


class Record(BaseModel):
    """A part of an artifact: immutable, with exactly the fields that its class names.

    A field that is None is left out of the JSON if its default is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True)


class JsonArtifact(Record):
    """A JSON file that one stage writes and others read.

    Attributes:
        FILE: its name within the stage's folder.
        VERSION: schema version, stored as `schema`; a file of another version is refused.
    """

    FILE: ClassVar[str]
    VERSION: ClassVar[int] = SCHEMA

    def save(self, folder: Path) -> None:
        """Writes the file into a folder.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        write_json(folder / self.FILE, {"schema": self.VERSION} | self.plain())

    def plain(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values, without the schema version."""
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the file from a folder.

        Raises:
            ArtifactError: the file is missing, damaged, of another schema version, or a field is
                missing, unknown or of the wrong type.
        """
        path = folder / cls.FILE
        content = load_json(path, cls.VERSION)
        del content["schema"]
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "its content"
            raise ArtifactError(
                f"{path}: {field}: {first['msg']}; the file is damaged or was written by another "
                "version of moe-export, run its stage again"
            ) from error


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON artifact with its schema version."""
    write_json(path, {"schema": SCHEMA} | content)


def load_json(path: Path, version: int = SCHEMA) -> dict[str, Any]:
    """Reads a JSON object with a schema version.

    Raises:
        ArtifactError: the file is missing, damaged or of another schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != version:
        found = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(
            f"{path} has schema {found!r}, this version of moe-export reads {version}; "
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
