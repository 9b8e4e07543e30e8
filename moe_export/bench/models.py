"""The models that a benchmark compares, from the words of its command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_export.errors import ArtifactError, RecipeError
from moe_export.variants import MODEL_FILE, exported

GGUF = ".gguf"
"""Suffix of a word that is a file of llama.cpp."""

COPIED = "@copied"
"""Suffix of a word whose model copies its packed weights to huge pages."""

PORTABLE = "@portable"
"""Suffix of a word whose model runs as standard operators, without the native library."""


@dataclass(frozen=True)
class Model:
    """One model of a benchmark.

    Attributes:
        name: Name in the table.
        directory: Folder that holds `model.onnx`; for llama.cpp the GGUF file.
        operator: `native` or `portable`, as `validate.operator`.
        copied: True if packed weights are copied to huge pages when the model is loaded.
        llama_cpp: Folder of llama.cpp's libraries, which run the GGUF file.
    """

    name: str
    directory: Path
    operator: str = "native"
    copied: bool = False
    llama_cpp: Path | None = None

    @property
    def file_bytes(self) -> int:
        """Bytes of the graph and of its weights, or of the GGUF file."""
        if self.llama_cpp is not None:
            return self.directory.stat().st_size
        return sum(path.stat().st_size for path in self.directory.glob(f"{MODEL_FILE}*"))


def models_of(words: Sequence[str], llama_cpp: Path | None = None) -> list[Model]:
    """Finds the models of the words `[NAME=]DIRECTORY[@portable|@copied]` and `[NAME=]FILE.gguf`.

    A directory is a run, of which every exported model is taken, or a folder with `model.onnx`.

    Args:
        words: Words of the command line.
        copied: True if packed weights are copied to huge pages when the model is loaded.
        llama_cpp: Folder of llama.cpp's libraries.

    Raises:
        ArtifactError: A directory holds no exported model, or a file is missing.
        RecipeError: Two models have the same name, or a GGUF file is given without llama.cpp.
    """
    models = [model for word in words for model in _models_of(word, llama_cpp)]
    counts = Counter(model.name for model in models)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise RecipeError(
            f"{len(models)} models to compare, of which {counts[twice[0]]} are called {twice[0]}; "
            "give them names, as in new=runs/a old=runs/b"
        )
    return models


def _models_of(word: str, llama_cpp: Path | None) -> Iterator[Model]:
    if word.endswith(GGUF):
        yield _gguf_model(word, llama_cpp)
        return
    place = word.removesuffix(PORTABLE).removesuffix(COPIED)
    suffix = word.removeprefix(place)
    operator = "portable" if suffix == PORTABLE else "native"
    copied = suffix == COPIED
    # A folder may have = in its name.
    name, _, rest = ("", "", place) if Path(place).is_dir() else place.rpartition("=")
    directory = Path(rest)
    if (directory / MODEL_FILE).is_file():
        yield Model(name or f"{_own_name(directory)}{suffix}", directory, operator, copied)
        return
    variants = exported(directory / "export")
    if not variants:
        raise ArtifactError(
            f"{directory} holds no exported model, expected a run directory with export/ or a "
            f"folder with {MODEL_FILE}; run the export stage or give another directory"
        )
    for variant, folder in variants.items():
        yield Model(f"{name or directory.name}/{variant}{suffix}", folder, operator, copied)


def _gguf_model(word: str, llama_cpp: Path | None) -> Model:
    name, _, path = ("", "", word) if Path(word).is_file() else word.rpartition("=")
    if not Path(path).is_file():
        raise ArtifactError(f"{path} is no file, expected a GGUF file; give another path")
    if llama_cpp is None:
        raise RecipeError(
            f"{path} needs llama.cpp; give --llama-cpp the folder of its libraries, such as "
            "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
        )
    return Model(name or Path(path).stem, Path(path), llama_cpp=llama_cpp)


def _own_name(directory: Path) -> str:
    """Name of an exported model's folder: with its run where it lies in one.

    >>> _own_name(Path("runs/demo/export/pruned")), _own_name(Path("models/mine"))
    ('demo/pruned', 'mine')
    """
    run = directory.parent.parent.name if directory.parent.name == "export" else ""
    return f"{run}/{directory.name}" if run else directory.name
