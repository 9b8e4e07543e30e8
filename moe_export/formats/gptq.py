"""GPTQ: after rounding each row, adjusts the rows that are not yet rounded to compensate.

It minimises the error of the product with the calibration inputs, not that of the weights: Frantar
et al., arXiv:2210.17323. Rows are taken as they lie, without their `act_order`.

Legend: K depth, N columns, g rows of a group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import CheckpointError, ShapeError
from moe_export.formats import GRIDS
from moe_export.formats.matrix import QuantizedMatrix, grouped, in_float16
from moe_export.formats.rounding import quantized_matrix
from moe_export.formats.search import least_error_scale


def inverse_factor(hessian_KK: NDArray[np.float64], damping: float) -> NDArray[np.float32]:
    """The upper triangle U with Uᵀ U the inverse of the damped Hessian.

    >>> inverse_factor(np.diag([4.0, 0.25]), 0.0).tolist()
    [[0.5, 0.0], [0.0, 2.0]]

    Args:
        hessian_KK: Weighted sum over tokens of x xᵀ, float64.
        damping: Addition to the diagonal, as a share of its mean.

    Raises:
        CheckpointError: the damped Hessian is not positive definite.
    """
    depth = len(hessian_KK)
    damped = hessian_KK.astype(np.float64, copy=True)
    mean = float(damped.diagonal().mean()) if depth else 1.0
    damped[np.diag_indices(depth)] += damping * mean
    try:
        # Reversing rows and columns turns the lower factor into the upper one.
        lower = np.linalg.cholesky(damped[::-1, ::-1])
        factor: NDArray[np.float32] = np.linalg.inv(lower[::-1, ::-1]).astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise CheckpointError(
            f"the inputs seen in calibration give no positive definite matrix ({error}); raise "
            "quantize.damping"
        ) from error
    return np.triu(factor)


def quantize(
    matrix_KN: NDArray[np.float32],
    factor_KK: NDArray[np.float32],
    format_name: str,
    group_size: int,
) -> QuantizedMatrix:
    """Quantizes a matrix so that its product with the calibration inputs changes little.

    The scale of a group is searched for when its first row is reached, on the weights adjusted so
    far; each row is weighted by the cost of a unit of its error.

    Args:
        matrix_KN: Weights [K, N], float32.
        factor_KK: Result of `inverse_factor`, float32.
        format_name: Name of a quantized format.
        group_size: Rows of a group: 32, 64 or 128.

    Raises:
        ShapeError: the shapes do not fit.
        CheckpointError: a value is infinite, not a number or too large for a scale.
    """
    depth, columns = matrix_KN.shape
    if factor_KK.shape != (depth, depth):
        raise ShapeError(f"a factor of {factor_KK.shape} for a matrix of {matrix_KN.shape}")
    grid = GRIDS[format_name]
    grouped(matrix_KN, group_size)  # checks the matrix
    left_KN = matrix_KN.astype(np.float32, copy=True)
    cost_K = 1 / np.square(factor_KK.diagonal().astype(np.float64))
    codes = np.zeros((depth, columns), np.float32)
    groups = -(-depth // group_size)
    scale_GN = np.zeros((groups, columns), np.float32)
    zero_GN = np.zeros((groups, columns), np.float32) if grid.has_zero_point else None
    for group, start in enumerate(range(0, depth, group_size)):
        part = slice(start, min(start + group_size, depth))
        values_gN = left_KN[part]
        scale_1N, zero_1N = grid.fit(values_gN[None])
        cost_g = cost_K[part] / cost_K[part].max()
        scale_1N = least_error_scale(values_gN[None], scale_1N, zero_1N, grid, cost_g)
        scale_1N = in_float16(scale_1N, float(np.abs(values_gN).max(initial=0)))
        scale_GN[group] = scale_1N[0]
        if zero_GN is not None and zero_1N is not None:
            zero_GN[group] = zero_1N[0]
        factor_gg = factor_KK[part, part]
        error_gN = np.empty_like(values_gN)
        for row in range(len(values_gN)):
            value_N = values_gN[row]
            code_11N = grid.codes(value_N[None, None], scale_1N, zero_1N)
            codes[start + row] = code_11N[0, 0]
            rounded_N = grid.values(code_11N, scale_1N, zero_1N)[0, 0]
            error_gN[row] = (value_N - rounded_N) / factor_gg[row, row]
            values_gN[row + 1 :] -= np.outer(factor_gg[row, row + 1 :], error_gN[row])
        left_KN[part.stop :] -= factor_KK[part, part.stop :].T @ error_gN
    return quantized_matrix(grid, codes, scale_GN, zero_GN, group_size, "float16")
