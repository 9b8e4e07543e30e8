"""Scales that lose the least: smaller ones than the largest value asks for, where that pays.

Legend: G groups, g rows of a group, N columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_export.formats.grid import Grid

FACTORS = tuple(1 - step / 64 for step in range(17))
"""What a scale is multiplied by: 1 down to 0.75. Twice as many steps take less than a thousandth
off the error of int4 on normally distributed values.
"""


def least_error_scale(
    values_GgN: NDArray[np.float32],
    scale_GN: NDArray[np.float32],
    zero_GN: NDArray[np.float32] | None,
    grid: Grid,
    weight_K: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Of each group, the scale among `FACTORS` times the given one with the least squared error.

    Ties go to the larger scale, so that a group is as it would be without a search unless it gains.

    Args:
        values_GgN: the values; what lies beyond `weight_K` is padding.
        scale_GN: the scale of each group with which no value is cut off.
        zero_GN: the zero point of each group, which stays: both ends of its range are drawn in
            alike. None in a format without.
        grid: of the format.
        weight_K: how much the squared error of each row counts; all alike unless given.
    """
    weight_Gg1 = np.ones(values_GgN.shape[:2], np.float32)[..., None]
    if weight_K is not None:
        weight_Gg1.reshape(-1)[: weight_K.size] = weight_K
    best_GN = np.full(scale_GN.shape, np.inf, np.float32)
    chosen_GN = scale_GN
    for factor in FACTORS:
        # The error is that of the scale as it will be stored; one that does not fit has none.
        with np.errstate(over="ignore", invalid="ignore"):
            tried_GN = (scale_GN * np.float32(factor)).astype(np.float16).astype(np.float32)
            codes_GgN = grid.codes(values_GgN, tried_GN, zero_GN)
            difference = values_GgN - grid.values(codes_GgN, tried_GN, zero_GN)
        error_GN = (np.square(difference, out=difference) * weight_Gg1).sum(axis=1)
        better = error_GN < best_GN
        best_GN = np.where(better, error_GN, best_GN)
        chosen_GN = np.where(better, tried_GN, chosen_GN)
    return chosen_GN
