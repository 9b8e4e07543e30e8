"""Files at the top of a run directory, and the key of a stage that is not finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from moe_export.artifacts.base import JsonArtifact


class RunInfo(JsonArtifact):
    """The file that makes a directory a run directory.

    Attributes:
        moe_export: version of moe-export that last ran there.
    """

    FILE = "run.json"

    moe_export: str


class ResolvedRecipe(JsonArtifact):
    """The recipe of the last execution.

    Attributes:
        recipe: the recipe with every default filled in, as plain values.
    """

    FILE = "recipe.json"

    recipe: dict[str, Any]


@dataclass(frozen=True)
class PartialKey:
    """The key of the stage that a partial folder belongs to.

    Attributes:
        FILE: name of the file in the partial folder.
        key: key of the stage, SHA-256 in hex.
    """

    FILE: ClassVar[str] = "key"

    key: str

    def save(self, folder: Path) -> None:
        """Writes the file into a partial folder."""
        (folder / self.FILE).write_text(self.key, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PartialKey | None:
        """Reads the file; None if the folder has none."""
        path = folder / cls.FILE
        return cls(path.read_text(encoding="utf-8")) if path.exists() else None
