"""Scales of least squared error, which may cut off the largest values of a group.

Legend: G groups, g rows of a group, N columns.
"""

from __future__ import annotations

from functools import reduce

import numpy as np
from numpy.typing import NDArray

from moe_export.formats.grid import Grid

FACTORS = tuple(1 - step / 64 for step in range(17))
"""Factors of a scale that are tried: 1 down to 0.75. Twice as many steps reduce the error of int4
on normally distributed values by less than a thousandth.
"""


def least_error_scale(
    values_GgN: NDArray[np.float32],
    scale_GN: NDArray[np.float32],
    zero_GN: NDArray[np.float32] | None,
    grid: Grid,
    weight_K: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """The scale of each group with the least squared error, among `FACTORS` times the given one.

    Ties go to the larger scale, so that a group changes only if it gains.

    Args:
        values_GgN: Values; rows beyond the length of `weight_K` are padding.
        scale_GN: Scale of each group with which no value is cut off.
        zero_GN: Zero point of each group, which stays, so that both ends of the range are drawn in
            alike; None in a format without zero points.
        grid: Codes of the format.
        weight_K: Weight of each row's squared error; 1 unless given.
    """
    weight_Gg1 = np.ones(values_GgN.shape[:2], np.float32)[..., None]
    if weight_K is not None:
        weight_Gg1.reshape(-1)[: weight_K.size] = weight_K
    best_GN = np.full(scale_GN.shape, np.inf, np.float32)
    chosen_GN = scale_GN
    for factor in FACTORS:
        # The error is taken with the scale as stored; a scale that does not fit is never better.
        with np.errstate(over="ignore", invalid="ignore"):
            tried_GN = (scale_GN * np.float32(factor)).astype(np.float16).astype(np.float32)
            codes_GgN = grid.codes(values_GgN, tried_GN, zero_GN)
            difference = values_GgN - grid.values(codes_GgN, tried_GN, zero_GN)
        error_GgN = np.square(difference, out=difference) * weight_Gg1
        # Row by row: numpy's own order of summation depends on how the array lies in memory.
        error_GN = reduce(np.add, np.moveaxis(error_GgN, 1, 0))
        better = error_GN < best_GN
        best_GN = np.where(better, error_GN, best_GN)
        chosen_GN = np.where(better, tried_GN, chosen_GN)
    return chosen_GN
