"""The meaning of a format's codes, and the nearest codes to given values.

A grid is a set of at most 2 ** code_bits points that is scaled for each group:
value = (code - zero_point) * scale, or codebook[code] * scale where there is a codebook.

Legend: G groups, g rows of a group, N columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Fit = Callable[[Floats], tuple[Floats, Floats | None]]


@dataclass(frozen=True)
class Grid:
    """The codes of a format.

    Attributes:
        code_bits: Bits of a code.
        code_dtype: Dtype of the codes of a `QuantizedMatrix`; ONNX has the type of the same name.
        limits: The least and the greatest code that is used.
        fit: Function from values [G, g, N] in float32 to the scale [G, N] with which none is cut
            off, not rounded yet, and the zero points [G, N] as whole numbers, None without any.
        has_zero_point: True if groups have a zero point.
        codebook: Value of each code at a scale of 1, float32 [2 ** code_bits], ascending; None
            where the value is the code itself.
    """

    code_bits: int
    code_dtype: np.dtype[Any]
    limits: tuple[int, int]
    fit: Fit
    has_zero_point: bool = False
    codebook: Floats | None = None

    @property
    def storage_bits(self) -> int:
        """Bits of a code in checkpoints and in ONNX tensors, those of its dtype."""
        return int(ml_dtypes.iinfo(self.code_dtype).bits)

    @property
    def bits(self) -> int:
        """Bits of a code on a GPU, where codes lie as in checkpoints."""
        # Named so in sources whose hash is part of the shipped CUDA kernels' manifest.
        return self.storage_bits

    def codes(self, values_GgN: Floats, scale_GN: Floats, zero_GN: Floats | None) -> Floats:
        """The nearest codes, as whole numbers in float32 [G, g, N]; a scale of 0 gives the code
        that means 0.
        """
        if self.codebook is not None:
            return _nearest(self.codebook, values_GgN, scale_GN)
        divisor_GN = np.where(scale_GN == 0, np.float32(np.inf), scale_GN)
        codes: Floats = np.rint(values_GgN / divisor_GN[:, None])
        if zero_GN is not None:
            codes += zero_GN[:, None]
        return codes.clip(*self.limits)

    def values(self, codes_GgN: Floats, scale_GN: Floats, zero_GN: Floats | None) -> Floats:
        """The values of codes, float32 [G, g, N]."""
        points: Floats = codes_GgN
        if self.codebook is not None:
            points = self.codebook[codes_GgN.astype(np.uint8)]
        elif zero_GN is not None:
            points = codes_GgN - zero_GN[:, None]
        values: Floats = points * scale_GN[:, None]
        return values


def _nearest(codebook: Floats, values_GgN: Floats, scale_GN: Floats) -> Floats:
    """Codes by the midpoints between neighbours, in float32; a midpoint goes to the lower code.

    Values are multiplied by the scale's reciprocal and not divided, as in bitsandbytes.
    """
    midpoints = (codebook[1:] + codebook[:-1]) / np.float32(2)
    nonzero_GN = np.where(scale_GN == 0, np.float32(np.inf), scale_GN)
    relative_GgN = values_GgN * (np.float32(1) / nonzero_GN)[:, None]
    # A seventh of the time that np.searchsorted takes.
    codes_GgN = np.zeros(values_GgN.shape, np.uint8)
    for midpoint in midpoints:
        codes_GgN += relative_GgN > midpoint
    return codes_GgN.astype(np.float32)
