"""Files at the top of a run directory, and the key of a stage that is not finished.

`run.json` closes a chain of digests: it holds that of the recipe and of every stage's mark, the
marks hold those of all other files, and its last field is the digest of its own content.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from moe_export.artifacts.base import JsonArtifact


class RunInfo(JsonArtifact):
    """The file that makes a directory a run directory.

    Attributes:
        moe_export: version of moe-export that last ran there.
        recipe_sha256: SHA-256 of `recipe.json`, in hex; absent in runs of version 0.1.
        stages: SHA-256 of the mark of every finished stage by its folder; absent likewise.
        sha256: SHA-256 of the other fields as compact JSON with sorted keys; absent likewise.
    """

    FILE = "run.json"

    moe_export: str
    recipe_sha256: str | None = None
    stages: dict[str, str] | None = None
    sha256: str | None = None

    def sealed(self) -> Self:
        """Returns a copy whose last field is the digest of the others."""
        return self.model_copy(update={"sha256": self._digest()})

    @property
    def is_sealed(self) -> bool:
        """True if the last field is the digest of the others."""
        return self.sha256 == self._digest()

    def _digest(self) -> str:
        content = {"schema": self.VERSION} | self.plain()
        content.pop("sha256", None)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


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
