"""uint8 and uint4: a group's range, and 0 with it, laid over all codes (asymmetric).

One code of each group, its zero point, means 0, so that weights of 0 stay 0. A group of zeros has
scale 0 and zero point 0.
"""

from __future__ import annotations

from functools import partial

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats.facts import EVERYWHERE, FormatFacts
from moe_export.formats.grid import Grid


def fit(
    values_GgN: NDArray[np.float32], last: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scale with which the least value has code 0 and the greatest the last, and the code that
    means 0, [G, N] each.

    >>> scale, zero_point = fit(np.array([[[-5.0], [10.0]]], np.float32), 15)
    >>> scale.item(), zero_point.item()
    (1.0, 5.0)
    """
    low_GN = values_GgN.min(axis=1, initial=0)
    with np.errstate(over="ignore"):
        scale_GN = (values_GgN.max(axis=1, initial=0) - low_GN) / np.float32(last)
    nonzero_GN = np.where(scale_GN == 0, np.float32(1), scale_GN)
    return scale_GN, np.rint(-low_GN / nonzero_GN).clip(0, last)


UINT8 = FormatFacts(
    name="uint8",
    grid=Grid(8, np.dtype(np.uint8), (0, 255), partial(fit, last=255), has_zero_point=True),
    uses=frozenset({"experts", "dense"}),
    executors=EVERYWHERE,
    panel_bits=8,
    cuda_dtypes=("float16",),
)
UINT4 = FormatFacts(
    name="uint4",
    grid=Grid(4, np.dtype(ml_dtypes.uint4), (0, 15), partial(fit, last=15), has_zero_point=True),
    uses=frozenset({"experts", "dense"}),
    executors=EVERYWHERE,
    panel_bits=4,
    cuda_dtypes=("float16",),
)
