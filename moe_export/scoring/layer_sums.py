"""Sums of scores of one layer, and their file.

Legend: E experts, R rows (sum of widths), C scores of data, K sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from moe_export.system.disk import disk_error


@dataclass(frozen=True)
class Sums:
    """Sums of scores over batches, in one vector that processes exchange.

    Attributes:
        flat: All sums, float64; the other attributes are parts of it.
        sums_CR: Sums of the scores, weighted by source.
        sources_KCE: Sums of the scores over the rows of an expert, for each source.
        tokens_E: Number of tokens routed to each expert.
        weight_E: Sum of the weights of these tokens.
    """

    flat: NDArray[np.float64]
    sums_CR: NDArray[np.float64]
    sources_KCE: NDArray[np.float64]
    tokens_E: NDArray[np.float64]
    weight_E: NDArray[np.float64]

    @classmethod
    def zeros(cls, scores: int, rows: int, sources: int, experts: int) -> Sums:
        """Sums over no batch."""
        shapes = ((scores, rows), (sources, scores, experts), (experts,), (experts,))
        sizes = [int(np.prod(shape)) for shape in shapes]
        flat = np.zeros(sum(sizes))
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        return cls(flat, *(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))


@dataclass(frozen=True)
class LayerSums:
    """Scores of one layer before they are divided by anything.

    Attributes:
        widths_E: Widths of the experts on the axis, int64; empty in a layer without experts.
        sums_CR: Sums of the scores of data, float64, in the order of the request.
        sources_KCE: The same, float64, summed over the rows of an expert, for each source.
        tokens_E: Number of tokens routed to each expert, int64.
        weight_E: Sum of the weights of these tokens, float64.
        weights: Scores that need no data, float64 [R], by name.
    """

    widths_E: NDArray[np.int64]
    sums_CR: NDArray[np.float64]
    sources_KCE: NDArray[np.float64]
    tokens_E: NDArray[np.int64]
    weight_E: NDArray[np.float64]
    weights: dict[str, NDArray[np.float64]]


_NAMES = ("widths", "sums", "sources", "tokens", "weight")
"""Names of the tensors in the file, in the order of the attributes."""


def save_sums(folder: Path, layer: int, sums: LayerSums) -> None:
    """Writes `layer-N.safetensors`; the file has its name only once it is complete.

    Raises:
        ResourceError: the disk is full.
    """
    path = _path(folder, layer)
    temporary = path.with_suffix(".partial")
    tensors = (sums.widths_E, sums.sums_CR, sums.sources_KCE, sums.tokens_E, sums.weight_E)
    content = dict(zip(_NAMES, tensors, strict=True))
    try:
        save_file(content | {f"weights.{k}": v for k, v in sums.weights.items()}, temporary)
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error


def load_sums(folder: Path, layer: int) -> LayerSums:
    """Reads `layer-N.safetensors`."""
    content = load_file(_path(folder, layer))
    widths_E, sums_CR, sources_KCE, tokens_E, weight_E = (content.pop(name) for name in _NAMES)
    weights = {name.removeprefix("weights."): value for name, value in content.items()}
    return LayerSums(widths_E, sums_CR, sources_KCE, tokens_E, weight_E, weights)


def _path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer}.safetensors"
