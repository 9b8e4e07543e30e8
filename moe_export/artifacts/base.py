"""Reading and writing of artifacts: JSON records with a schema version, and tensors.

Every JSON artifact is a class derived from `JsonArtifact`. Its file name is written once, there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from moe_export.checkpoint import write_json
from moe_export.errors import ArtifactError
from moe_export.system.digests import open_regular
from moe_export.system.disk import disk_error
from moe_export.system.files import allow_by_umask

SCHEMA = 1
"""Schema version of artifacts that do not state one of their own."""


class Record(BaseModel):
    """A part of an artifact: immutable, with exactly the fields that its class names.

    A field whose default is None is absent from the JSON when it is None. A field without a default
    is always there; it is null when it is None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    def plain(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values, in the order of the class."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_plain(cls, content: Any) -> Self:
        """Makes the record from plain JSON values, as `plain` returns them."""
        # In JSON, unlike in Python, a list may stand for a tuple under strict rules.
        return cls.model_validate_json(json.dumps(content))

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        for name, field in type(self).model_fields.items():
            if field.default is None and getattr(self, name) is None:
                del content[field.serialization_alias or name]
        return content


class JsonArtifact(Record):
    """A JSON file that one stage writes and others read.

    Attributes:
        FILE: name of the file within the stage's folder.
        VERSION: schema version, stored as `schema`; a file of another version is refused.
        DERIVED: names of properties that the file states too, after the fields.
    """

    FILE: ClassVar[str]
    VERSION: ClassVar[int] = SCHEMA
    DERIVED: ClassVar[tuple[str, ...]] = ()

    def save(self, folder: Path) -> None:
        """Writes the file into a folder.

        Raises:
            ResourceError: the disk is full or the folder cannot be written.
        """
        write_json(folder / self.FILE, self._content())

    def text(self) -> str:
        """Returns the text of the file, for a place that the user names."""
        return json.dumps(self._content(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _content(self) -> dict[str, Any]:
        derived = {name: getattr(self, name) for name in self.DERIVED}
        return {"schema": self.VERSION} | self.plain() | derived

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the file from a folder.

        Raises:
            ArtifactError: the file is missing, damaged, of another schema version, or a field is
                missing, unknown or of the wrong type.
        """
        return cls.load_file(folder / cls.FILE)

    @classmethod
    def load_file(cls, path: Path) -> Self:
        """Reads the file from a place that the user names.

        Raises:
            ArtifactError: as `load`.
        """
        content = _load_json(path, cls.VERSION)
        del content["schema"]
        for name in cls.DERIVED:
            if name not in content:
                _refuse(path, f"field {name!r} is missing")
            del content[name]
        try:
            return cls.from_plain(content)
        except ValidationError as error:
            _refuse(path, _first_fault(error, content))


def _refuse(path: Path, fault: str) -> NoReturn:
    raise ArtifactError(
        f"{path}: {fault}; the file is damaged or of another version of moe-export, make it again "
        "with this one"
    )


def _first_fault(error: ValidationError, content: Any) -> str:
    """Returns the first fault of a validation in plain words, with the field's path."""
    first = error.errors(include_url=False)[0]
    is_missing = first["type"] in ("missing", "union_tag_not_found")
    location = first["loc"]
    if first["type"].startswith("union_tag"):
        location = (*location, first["ctx"]["discriminator"].strip("'"))
    path: list[str | int] = []
    for part in location:
        if isinstance(content, dict) and part in content:
            content = content[str(part)]
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        elif not (is_missing and part == location[-1]):
            continue  # pydantic names the alternative of a union here
        path.append(part)
    field = ".".join(map(str, path))
    if is_missing:
        return f"field {field!r} is missing"
    if first["type"] == "extra_forbidden":
        return f"field {field!r} is unknown"
    value = json.dumps(content, ensure_ascii=False)
    shown = value if len(value) <= 60 else f"{value[:57]}..."
    wanted = first["msg"].replace("Input", "it", 1)
    if first["type"] == "union_tag_invalid":
        wanted = f"it should be one of {first['ctx']['expected_tags']}"
    return f"field {field!r} is {shown}; {wanted}"


def _load_json(path: Path, version: int) -> dict[str, Any]:
    """Reads a JSON object with a schema version.

    Raises:
        ArtifactError: the file is missing, damaged or of another schema version.
    """
    try:
        with open_regular(path) as file:
            content = json.loads(file.read().decode())
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} cannot be read as JSON ({error}); remove it and run its stage again"
        ) from error
    if not isinstance(content, dict) or content.get("schema") != version:
        schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(
            f"{path} has schema {schema!r}, this version of moe-export reads {version}; "
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
        allow_by_umask(path)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, path) from error


def load_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Reads a safetensors file.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        open_regular(path).close()  # safetensors calls an unreadable file missing
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; run the stage that writes it") from error
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path} is damaged ({error}); run its stage again") from error
    return tensors


def require_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], dtypes: Mapping[str, DTypeLike]
) -> None:
    """Checks that a file holds exactly the tensors that it should.

    Args:
        path: path of the file, for the message.
        tensors: the tensors of the file by name.
        dtypes: dtype of each tensor that must be there.

    Raises:
        ArtifactError: a tensor is missing, unknown or of another dtype.
    """
    for name in [*dtypes, *tensors]:
        if name not in tensors:
            fault = "is missing"
        elif name not in dtypes:
            fault = "is unknown"
        elif tensors[name].dtype != dtypes[name]:
            fault = f"is of dtype {tensors[name].dtype}, expected {np.dtype(dtypes[name])}"
        else:
            continue
        raise ArtifactError(
            f"{path}: tensor {name!r} {fault}; the file is damaged or of another version of "
            "moe-export, run its stage again"
        )
