"""Files that pass between stages: their names, how they are written, read and checked.

Legend: N tokens of all sequences, S sequences, E experts, R rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from moe_export.checkpoint import write_json
from moe_export.disk import disk_error
from moe_export.errors import ArtifactError

SCHEMA = 1
"""Version of every JSON artifact; a file of another one is refused."""

CALIBRATION_FILE = "calibration.safetensors"
IMPORTANCE_FILE = "importance.safetensors"


@dataclass(frozen=True)
class Calibration:
    """Token sequences of unequal length, end to end.

    Attributes:
        tokens_N: int32, BOS included where the tokenizer adds one.
        offsets_S1: int64 [S + 1]; sequence s is tokens offsets[s] to offsets[s + 1].
        prompt_S: int32, leading tokens of each sequence that are its prompt (0: none).
        source_S: int32, index of the source each sequence came from.
    """

    tokens_N: NDArray[np.int32]
    offsets_S1: NDArray[np.int64]
    prompt_S: NDArray[np.int32]
    source_S: NDArray[np.int32]

    def sequences(self) -> list[NDArray[np.int32]]:
        """The token ids of each sequence."""
        return np.split(self.tokens_N, self.offsets_S1[1:-1])


@dataclass(frozen=True)
class Importance:
    """What the importance stage found.

    Attributes:
        scores: score name to, per layer, float64 [R], the rows of the shared expert last if it was
            scored; +inf where nothing is known.
        tokens_per_expert: per layer, int64 [E]: calibration tokens routed to each expert, without
            the shared one.
    """

    scores: dict[str, list[NDArray[np.float64]]]
    tokens_per_expert: list[NDArray[np.int64]]


def save_calibration(folder: Path, calibration: Calibration) -> None:
    """Writes `calibration.safetensors`."""
    _save(
        folder / CALIBRATION_FILE,
        {
            "tokens": calibration.tokens_N,
            "offsets": calibration.offsets_S1,
            "prompt": calibration.prompt_S,
            "source": calibration.source_S,
        },
    )


def load_calibration(folder: Path) -> Calibration:
    """Reads `calibration.safetensors`.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    tensors = _load(folder / CALIBRATION_FILE, ("tokens", "offsets", "prompt", "source"))
    return Calibration(tensors["tokens"], tensors["offsets"], tensors["prompt"], tensors["source"])


def evenly_chosen(sequences: Sequence[NDArray[np.int32]], tokens: int) -> list[NDArray[np.int32]]:
    """As many sequences, evenly spread, as have at most so many tokens; at least one.

    >>> [len(s) for s in evenly_chosen([np.zeros(n, np.int32) for n in (3, 4, 5, 6)], 10)]
    [3, 5]
    """
    every = 1
    while every < len(sequences) and sum(map(len, sequences[::every])) > tokens:
        every += 1
    return list(sequences[::every])


def save_importance(folder: Path, importance: Importance) -> None:
    """Writes `importance.safetensors`: `layers.{l}.{score}` and `layers.{l}.tokens_per_expert`."""
    tensors: dict[str, NDArray[Any]] = {}
    for layer, tokens in enumerate(importance.tokens_per_expert):
        tensors[f"layers.{layer}.tokens_per_expert"] = tokens
        for score, layers in importance.scores.items():
            tensors[f"layers.{layer}.{score}"] = layers[layer]
    _save(folder / IMPORTANCE_FILE, tensors)


def load_importance(folder: Path) -> Importance:
    """Reads `importance.safetensors`.

    Raises:
        ArtifactError: it is missing or damaged.
    """
    tensors = _load(folder / IMPORTANCE_FILE, ("layers.0.tokens_per_expert",))
    layers = range(sum(name.endswith(".tokens_per_expert") for name in tensors))
    names = sorted(
        name.removeprefix("layers.0.") for name in tensors if name.startswith("layers.0.")
    )
    scores = {
        name: [tensors[f"layers.{layer}.{name}"] for layer in layers]
        for name in names
        if name != "tokens_per_expert"
    }
    return Importance(scores, [tensors[f"layers.{layer}.tokens_per_expert"] for layer in layers])


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


def _save(path: Path, tensors: dict[str, NDArray[Any]]) -> None:
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, path) from error


def _load(path: Path, needed: tuple[str, ...]) -> dict[str, NDArray[Any]]:
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
