"""Bound on the error of an execution of `RaggedMoE`, derived from its arithmetic.

Legend: T tokens, D hidden, w width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.op import spec
from moe_export.op.reference import GELU_CUBIC, GELU_LINEAR, weight_values
from moe_export.op.scales import TokenScales
from moe_export.testing.cases import Inputs

Array = NDArray[Any]


def error_bound(inputs: Inputs, activation_block: int = 0) -> Array:
    """Largest error allowed in each element of y, [T, D] float64.

    A sum of n products that is accumulated and rounded in a dtype of unit roundoff u errs by at
    most about 4 * sqrt(n) * u times the sum of the products' magnitudes, unless the roundings
    conspire (Higham and Mary 2019, doi:10.1137/18M1226312). The bound applies this to each of the
    four sums of the definition (gate, up, down, over the experts) and carries it through the
    activation, whose slope is at most 1.1 in magnitude (silu), 1.13 (gelu) or 1 (relu). The dtype
    is that of x: an execution may round every intermediate result to it, and weights of another
    format too.

    Args:
        inputs: Arrays of the call.
        activation_block: Number of values of x and of the hidden layer that share a scale where
            they are rounded to int8, 0 where they are not. Each errs by half a step, the largest
            value of its block over 254.
    """
    dtype = inputs.x.dtype
    unit = float(np.finfo(dtype).eps) / 2
    # Error of one rounding by gradual underflow, for products too small for the dtype.
    under = float(np.finfo(dtype).smallest_subnormal)
    weight_unit = 0.0 if inputs.format_name == dtype.name else unit

    def gamma(terms: int) -> float:
        return 4 * float(np.sqrt(terms + 2)) * unit

    x = inputs.x.astype(np.float64)
    x_error = activation_error(np.abs(x), activation_block)
    magnitude = np.zeros_like(x)
    bound = np.zeros_like(x)
    indices, weights = inputs.expert_indices, np.abs(inputs.routing_weights.astype(np.float64))
    scales = inputs.scales or TokenScales()
    widths = tuple(expert[-1].shape[0] for expert in inputs.experts)
    units = np.split(scales.units_of(widths), np.cumsum(widths)[:-1])
    chosen = [(e, (weights * (indices == i)).sum(axis=1)) for i, e in enumerate(inputs.experts)]
    if inputs.shared is not None and inputs.shared_weight is not None:
        chosen.append((inputs.shared, np.abs(inputs.shared_weight.astype(np.float64))[:, 0]))
    for number, (expert, weight_T) in enumerate(chosen):
        is_routed = number < len(inputs.experts)
        *signed_factors, signed_down = (weight_values(weight) for weight in expert)
        down = np.abs(signed_down)
        width, hidden_size = down.shape
        depth_unit = gamma(hidden_size) + weight_unit
        rows = [x, x]
        row_errors = [x_error, x_error]
        if is_routed and scales.input_scale is not None:
            up_scale = scales.input_scale if scales.up_scale is None else scales.up_scale
            rows = [x * scale.astype(np.float64) for scale in (scales.input_scale, up_scale)]
            rounded = [unit * np.abs(row) + under for row in rows]
            row_errors = [
                error + activation_error(np.abs(row) + error, activation_block)
                for row, error in zip(rows, rounded, strict=True)
            ]
        products = [row @ factor for row, factor in zip(rows, signed_factors, strict=False)]
        errors = [
            depth_unit * (np.abs(row) @ np.abs(factor)) + row_error @ np.abs(factor) + under
            for row, row_error, factor in zip(rows, row_errors, signed_factors, strict=False)
        ]
        value, hidden_error = _activated(inputs.activation, products[0], errors[0], gamma)
        hidden_error = hidden_error + under
        hidden = np.abs(value)
        if inputs.activation in spec.GATED:
            u, u_error = np.abs(products[1]), errors[1]
            hidden_error = hidden_error * u + hidden * u_error + hidden_error * u_error
            hidden = hidden * u
            hidden_error = hidden_error + unit * hidden
        if is_routed and scales.hidden_scale is not None:
            factor = np.abs(scales.hidden_scale.astype(np.float64)[:, units[number]])
            hidden = hidden * factor
            hidden_error = hidden_error * factor + unit * hidden + under
        hidden_error = hidden_error + activation_error(hidden + hidden_error, activation_block)
        out_unit = gamma(width) + weight_unit
        out_error = (hidden_error + under) @ down + out_unit * (hidden @ down) + under
        bound += weight_T[:, None] * out_error
        magnitude += weight_T[:, None] * (hidden @ down)
    return bound + gamma(indices.shape[1] + 1) * magnitude + under


def activation_error(magnitude: Array, block: int) -> Array:
    """Error of rounding each row [T, K] to int8, `block` values to a scale; zero without blocks."""
    if not block:
        return np.zeros_like(magnitude)
    tokens, size = magnitude.shape
    padded = np.pad(magnitude, ((0, 0), (0, -size % block)))
    largest = padded.reshape(tokens, -(-size // block), block).max(axis=2, initial=0)
    # The step is rounded too, to float32.
    return np.repeat(largest, block, axis=1)[:, :size] / 254 * (1 + 2**-20)


def _activated(
    activation: spec.Activation, a: Array, error: Array, gamma: Callable[[int], float]
) -> tuple[Array, Array]:
    """The activation of `a`, and its error if `a` errs by `error`."""
    if activation in ("relu", "relu2"):
        relu = np.maximum(a, 0)
        if activation == "relu":
            return relu, error
        return relu**2, 2 * relu * error + error**2 + gamma(1) * relu**2
    if activation == "geglu":
        # The argument of the sigmoid is rounded too, and the sigmoid has a slope of s (1 - s).
        twice_z = a * (GELU_LINEAR + GELU_CUBIC * a**2)
        s = 1 / (1 + np.exp(-twice_z))
        value = a * s
        through_sigmoid = np.abs(a * twice_z) * s * (1 - s)
        return value, 1.13 * error + gamma(2) * np.abs(value) + gamma(4) * through_sigmoid
    value = a / (1 + np.exp(-a))
    return value, 1.1 * error + gamma(2) * np.abs(value)
