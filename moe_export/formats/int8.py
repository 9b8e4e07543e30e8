"""int8: codes from -127 to 127, the largest magnitude of a group being 127."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_export.formats.facts import EVERYWHERE, FormatFacts
from moe_export.formats.grid import Grid


def fit(values_GgN: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
    """The scale [G, N] with which the largest magnitude has the code 127.

    >>> fit(np.array([[[-254.0], [12.0]]], np.float32))[0].item()
    2.0
    """
    scale_GN: NDArray[np.float32] = np.abs(values_GgN).max(axis=1, initial=0) / 127
    return scale_GN, None


FORMAT = FormatFacts(
    name="int8",
    grid=Grid(8, np.dtype(np.int8), (-127, 127), fit),
    uses=frozenset({"experts", "dense", "embedding"}),
    executors=EVERYWHERE,
    panel_bits=8,
    cuda_dtypes=("float32", "float16"),
)
