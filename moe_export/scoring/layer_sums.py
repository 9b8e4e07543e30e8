"""Sums of scores of one layer, and their file.

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
        widths_E: Widths of the experts on the axis, int64; empty in a layer without experts.
        sums_CR: Sums of the scores of data, float64, in the order of the request.
        tokens_E: Number of tokens routed to each expert, int64.
        weights: Scores that need no data, float64 [R], by name.
    """

    widths_E: NDArray[np.int64]
    sums_CR: NDArray[np.float64]
    tokens_E: NDArray[np.int64]
    weights: dict[str, NDArray[np.float64]]


def save_sums(folder: Path, layer: int, sums: LayerSums) -> None:
    """Writes `layer-N.safetensors`; the file has its name only once it is complete.

    Raises:
        ResourceError: the disk is full.
    """
    path = _path(folder, layer)
    temporary = path.with_suffix(".partial")
    content = {"widths": sums.widths_E, "sums": sums.sums_CR, "tokens": sums.tokens_E}
    try:
        save_file(content | {f"weights.{k}": v for k, v in sums.weights.items()}, temporary)
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
