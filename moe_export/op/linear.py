"""The definition of `Linear`, in numpy. All other implementations are tested against it.

Legend: K depth (inputs), N columns (outputs).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ShapeError
from moe_export.formats import QuantizedMatrix
from moe_export.op.reference import DTYPES, Weight, weight_values


def linear(x: NDArray[Any], weight_KN: Weight, bias_N: NDArray[Any] | None = None) -> NDArray[Any]:
    """Computes x @ weight + bias.

    * Without rows of x the output has no rows.
    * NaN and infinities stay in their own row.
    * With quantized weights an implementation may round x to int8, 32 values to a scale; the native
      kernels do, unless told not to.
    * Accumulation is in float64, and the result is rounded to x's dtype once. Other implementations
      may accumulate in float32, and may round the product to x's dtype before the bias is added.
      Each gives the same bits for the same inputs, whatever the number of threads.

    Args:
        x: Input [..., K], float32 or float16.
        weight_KN: Matrix [K, N] in x's dtype or in bfloat16, or quantized with scales in x's dtype.
        bias_N: Bias [N] in x's dtype; None without one.

    Returns:
        y [..., N] in x's dtype.

    Raises:
        ShapeError: Shapes or dtypes do not fit.
    """
    _check(x, weight_KN, bias_N)
    # Overflow and NaN are part of the definition.
    with np.errstate(over="ignore", invalid="ignore"):
        y: NDArray[Any] = x.astype(np.float64) @ weight_values(weight_KN)
        if bias_N is not None:
            y = y + bias_N.astype(np.float64)
        return y.astype(x.dtype)


def _check(x: NDArray[Any], weight: Weight, bias: NDArray[Any] | None) -> None:
    if not x.ndim or x.dtype not in DTYPES:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}, expected [..., K], float32 or float16")
    dtype = weight.scale.dtype if isinstance(weight, QuantizedMatrix) else weight.dtype
    fits = len(weight.shape) == 2 and weight.shape[0] == x.shape[-1]
    if not fits or dtype not in (x.dtype, ml_dtypes.bfloat16):
        raise ShapeError(
            f"weight is {dtype} {list(weight.shape)}, expected {x.dtype} [{x.shape[-1]}, N]"
        )
    if bias is not None and (bias.shape != weight.shape[1:] or bias.dtype != x.dtype):
        raise ShapeError(
            f"bias is {bias.dtype} {list(bias.shape)}, expected {x.dtype} [{weight.shape[1]}]"
        )
