"""What is known of one layer, and its file.

Legend: E experts, R rows (sum of widths), C scores of data.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from moe_export.system.disk import disk_error


@dataclass(frozen=True)
class LayerSums:
    """Scores of one layer before they are divided by anything.

    Attributes:
        widths_E: of its experts, the shared one last if it is scored; empty if there are none.
        sums_CR: of the scores of data, in the order they were asked for.
        tokens_E: routed to each expert.
        weights: scores that need no data, by name.
    """

    widths_E: NDArray[np.int64]
    sums_CR: NDArray[np.float64]
    tokens_E: NDArray[np.int64]
    weights: dict[str, NDArray[np.float64]]


def save_sums(folder: Path, layer: int, found: LayerSums) -> None:
    """Writes `layer-N.safetensors`, which is there only when it is whole.

    Raises:
        ResourceError: the disk is full.
    """
    path = _path(folder, layer)
    temporary = path.with_suffix(".partial")
    content = {"widths": found.widths_E, "sums": found.sums_CR, "tokens": found.tokens_E}
    try:
        save_file(content | {f"weights.{k}": v for k, v in found.weights.items()}, temporary)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error


def load_sums(folder: Path, layer: int) -> LayerSums:
    """Reads `layer-N.safetensors`."""
    content = load_file(_path(folder, layer))
    widths_E, sums_CR, tokens_E = (content.pop(name) for name in ("widths", "sums", "tokens"))
    weights = {name.removeprefix("weights."): value for name, value in content.items()}
    return LayerSums(widths_E, sums_CR, tokens_E, weights)


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer}.safetensors"
