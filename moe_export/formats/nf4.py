"""nf4: sixteen values that suit normally distributed weights, times a group's largest magnitude.

The values are quantiles of the normal distribution, one of them 0 and the outermost -1 and 1
(Dettmers et al., QLoRA, arXiv:2305.14314, appendix E, whose digits are bitsandbytes' float32
constants). A group's scale is its largest magnitude. Where that is a float16 number, as it is of
weights in float16 or of usual size in bfloat16, codes and scales are those of bitsandbytes 0.50 bit
for bit, as long as the depth is a multiple of the group size; bitsandbytes lets groups run on from
one row to the next.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats.facts import EVERYWHERE, FormatFacts
from moe_export.formats.grid import Grid

CODEBOOK = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
"""Value of each code at a scale of 1, float32 [16]."""


def fit(values_GgN: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
    """The scale [G, N]: the largest magnitude.

    >>> fit(np.array([[[-2.5], [1.0]]], np.float32))[0].item()
    2.5
    """
    scale_GN: NDArray[np.float32] = np.abs(values_GgN).max(axis=1, initial=0)
    return scale_GN, None


FORMAT = FormatFacts(
    name="nf4",
    grid=Grid(4, np.dtype(ml_dtypes.uint4), (0, 15), fit, codebook=CODEBOOK),
    executors=EVERYWHERE,
    panel_bits=4,
    cuda_dtypes=("float16",),
)
"""Format for experts only: MatMulNBits, which multiplies dense matrices, has no codebook."""
