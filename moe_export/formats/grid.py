"""What the codes of a format stand for, and the nearest codes to given values.

A format is a grid of 2 ** bits points that is scaled for each group: value = (code - zero_point) *
scale, or codebook[code] * scale where it has a codebook. Everything else about formats is the same.

Legend: G groups, g rows of a group, N columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Fit = Callable[[Floats], tuple[Floats, Floats | None]]


@dataclass(frozen=True)
class Grid:
    """The facts of a format.

    Attributes:
        bits: of a code.
        code_dtype: of the codes of a `QuantizedMatrix`; ONNX has the type of the same name.
        limits: the least and the greatest code that is used.
        fit: gives, for values [G, g, N] in float32, the scale [G, N] with which none is cut off,
            not rounded yet, and the zero points [G, N] as whole numbers, None without any.
        has_zero_point: whether groups have one.
        codebook: [2 ** bits] float32, ascending, what each code stands for at a scale of 1; None
            where it is the code itself.
    """

    bits: int
    code_dtype: np.dtype[Any]
    limits: tuple[int, int]
    fit: Fit
    has_zero_point: bool = False
    codebook: Floats | None = None

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
        """What codes stand for, float32 [G, g, N]."""
        points: Floats = codes_GgN
        if self.codebook is not None:
            points = self.codebook[codes_GgN.astype(np.uint8)]
        elif zero_GN is not None:
            points = codes_GgN - zero_GN[:, None]
        values: Floats = points * scale_GN[:, None]
        return values


def _nearest(codebook: Floats, values_GgN: Floats, scale_GN: Floats) -> Floats:
    """Codes by the midpoints between neighbours, in float32; a value on one goes to the lower code.

    As bitsandbytes does it, values are multiplied by the scale's reciprocal and not divided.
    """
    midpoints = (codebook[1:] + codebook[:-1]) / np.float32(2)
    nonzero_GN = np.where(scale_GN == 0, np.float32(np.inf), scale_GN)
    relative_GgN = values_GgN * (np.float32(1) / nonzero_GN)[:, None]
    # A seventh of the time that np.searchsorted takes.
    codes_GgN = np.zeros(values_GgN.shape, np.uint8)
    for midpoint in midpoints:
        codes_GgN += relative_GgN > midpoint
    return codes_GgN.astype(np.float32)
