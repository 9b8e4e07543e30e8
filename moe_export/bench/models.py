"""The models that a benchmark compares, from the words of its command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_export.errors import ArtifactError, RecipeError
from moe_export.variants import MODEL_FILE, exported

PORTABLE = "@portable"
"""Suffix of a word whose model runs as standard operators, without the native library."""


@dataclass(frozen=True)
class Model:
    """One model of a benchmark.

    Attributes:
        name: Name in the table.
        directory: Folder that holds `model.onnx`.
        operator: `native` or `portable`, as `validate.operator`.
    """

    name: str
    directory: Path
    operator: str = "native"

    @property
    def file_bytes(self) -> int:
        """Bytes of the graph and of its weights."""
        return sum(path.stat().st_size for path in self.directory.glob(f"{MODEL_FILE}*"))


def models_of(words: Sequence[str]) -> list[Model]:
    """Finds the models of the words `[NAME=]DIRECTORY[@portable]`.

    A directory is a run, of which every exported model is taken, or a folder with `model.onnx`.

    Raises:
        ArtifactError: A directory holds no exported model.
        RecipeError: Two models have the same name.
    """
    models = [model for word in words for model in _models_of(word)]
    counts = Counter(model.name for model in models)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise RecipeError(
            f"{len(models)} models to compare, of which {counts[twice[0]]} are called {twice[0]}; "
            "give them names, as in new=runs/a old=runs/b"
        )
    return models


def _models_of(word: str) -> Iterator[Model]:
    place = word.removesuffix(PORTABLE)
    operator = "portable" if place != word else "native"
    # A folder may have = in its name.
    name, _, rest = ("", "", place) if Path(place).is_dir() else place.rpartition("=")
    directory = Path(rest)
    suffix = PORTABLE if operator == "portable" else ""
    if (directory / MODEL_FILE).is_file():
        yield Model(name or f"{_own_name(directory)}{suffix}", directory, operator)
        return
    variants = exported(directory / "export")
    if not variants:
        raise ArtifactError(
            f"{directory} holds no exported model, expected a run directory with export/ or a "
            f"folder with {MODEL_FILE}; run the export stage or give another directory"
        )
    for variant, folder in variants.items():
        yield Model(f"{name or directory.name}/{variant}{suffix}", folder, operator)


def _own_name(directory: Path) -> str:
    """Name of an exported model's folder: with its run where it lies in one.

    >>> _own_name(Path("runs/demo/export/pruned")), _own_name(Path("models/mine"))
    ('demo/pruned', 'mine')
    """
    run = directory.parent.parent.name if directory.parent.name == "export" else ""
    return f"{run}/{directory.name}" if run else directory.name
