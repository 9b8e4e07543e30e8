"""The definition of `RaggedMoE`, in numpy. All other implementations are tested against it.

Legend: T tokens, D hidden, K experts per token, E experts, R rows (the sum of the widths).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ShapeError
from moe_export.experts import ExpertTable
from moe_export.formats import QuantizedMatrix
from moe_export.op.scales import TokenScales
from moe_export.op.spec import GATED, Activation, expert_inputs

DTYPES = (np.dtype(np.float32), np.dtype(np.float16))

Weight = NDArray[Any] | QuantizedMatrix
Expert = tuple[Weight, ...]
"""Gate, up and down; up and down where the activation is not gated."""


def ragged_moe(
    x_TD: NDArray[Any],
    expert_indices_TK: NDArray[np.int64],
    routing_weights_TK: NDArray[Any],
    experts: Sequence[Expert],
    shared: Expert | None = None,
    shared_weight_T1: NDArray[Any] | None = None,
    activation: Activation = "swiglu",
    scales: TokenScales | None = None,
) -> NDArray[Any]:
    """Computes the experts of one layer, each with a width of its own.

    For a token t:

        y[t] = sum over k of routing_weights[t, k] * expert(expert_indices[t, k], x[t])

    with silu(a) = a / (1 + exp(-a)), relu(a) = max(a, 0), and the gelu that MoE models use,
    0.5 * a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 * a ** 3)))
    ("gelu_pytorch_tanh", without the error function), expert(e, v) is

        swiglu    (silu(v @ gate_e) * (v @ up_e)) @ down_e
        geglu     (gelu(v @ gate_e) * (v @ up_e)) @ down_e
        silu      silu(v @ up_e) @ down_e
        relu      relu(v @ up_e) @ down_e
        relu2     (relu(v @ up_e) ** 2) @ down_e

    With the experts side by side along one axis R, owner[r] the expert of row r, and P[t, e] the
    sum of the routing weights that token t gives to expert e, a layer of swiglu is

        y = ((silu(x @ gate) * (x @ up)) * P[:, owner]) @ down

    where a row of an expert that the token did not choose is zero whatever the other factors are.

    * Routing happens outside: indices and weights are used as given. Weights need not sum to one
      and may be zero or negative. An expert that occurs twice in a row of `expert_indices` counts
      twice; the order within a row does not matter.
    * An expert of width 0 ([D, 0], [D, 0], [0, D]) adds zero.
    * Without tokens the output has no rows.
    * NaN and infinities propagate within their own token's row and reach no other row. A row whose
      chosen experts all have width 0 is zero even then.
    * Every token also takes the shared expert, if there is one, with the weight shared_weight[t].
    * With scales, a routed expert reads x[t] * input_scale[t] in place of v. If up_scale is given,
      `up` reads x[t] * up_scale[t]. Hidden value r of the expert, the factor before `@ down_e`, is
      multiplied by hidden_scale[t, units[r]]. The shared expert is not scaled.
    * Quantized weights mean code * scale, exactly. With quantized weights an implementation may
      round x and each expert's hidden values to int8, 32 of them to a scale; the native kernels
      do, unless told not to.
    * Accumulation is in float64, and the result is rounded to x's dtype once. Other implementations
      may accumulate in float32 and may round intermediate products and each expert's output to
      x's dtype. Each gives the same bits for the same inputs, on the same machine with the same
      number of threads.

    Args:
        x_TD: input [T, D], float32 or float16.
        expert_indices_TK: chosen experts [T, K] int64, each from 0 to E - 1; 1 <= K <= E.
        routing_weights_TK: routing weights [T, K] in x's dtype.
        experts: weights of the E experts, (gate [D, w], up [D, w], down [w, D]) each, without gate
            where the activation is not gated; in x's dtype or in bfloat16, or quantized with scales
            in x's dtype.
        shared: weights of the shared expert; None without one.
        shared_weight_T1: weight of the shared expert, [T, 1] in x's dtype; None without one.
        activation: activation, one of `spec.ACTIVATIONS`.
        scales: factors of the routed experts' inputs and hidden values; None without any.

    Returns:
        y [T, D] in x's dtype.

    Raises:
        ShapeError: if shapes or dtypes do not fit, or an expert index is not within 0 and E - 1.
    """
    _check(x_TD, expert_indices_TK, routing_weights_TK, experts, expert_inputs(activation))
    widths = tuple(expert[0].shape[1] for expert in experts)
    scales = scales or TokenScales()
    scales.check(x_TD, widths, gated=activation in GATED)
    if shared is not None and shared_weight_T1 is not None:
        _check_shared(x_TD, shared, shared_weight_T1, expert_inputs(activation))
        last = np.full((x_TD.shape[0], 1), len(experts))
        expert_indices_TK = np.concatenate([expert_indices_TK, last], axis=1)
        routing_weights_TK = np.concatenate([routing_weights_TK, shared_weight_T1], axis=1)
        experts = [*experts, shared]
    tokens, num_experts = x_TD.shape[0], len(experts)
    owner_R = ExpertTable(tuple(expert[0].shape[1] for expert in experts)).owner_R
    # Gate and up, or up alone.
    factors_DR = [
        np.concatenate([weight_values(expert[i]) for expert in experts], axis=1)
        for i in range(len(experts[0]) - 1)
    ]
    down_RD = np.concatenate([weight_values(expert[-1]) for expert in experts])

    weight_TE = np.zeros((tokens, num_experts))
    chosen_TE = np.zeros((tokens, num_experts), dtype=bool)
    row_TK = np.broadcast_to(np.arange(tokens)[:, None], expert_indices_TK.shape)
    np.add.at(weight_TE, (row_TK, expert_indices_TK), routing_weights_TK)
    chosen_TE[row_TK, expert_indices_TK] = True

    # Overflow and NaN are part of the definition.
    with np.errstate(over="ignore", invalid="ignore"):
        x = x_TD.astype(np.float64)
        first_scale, rows = scales.input_scale, sum(widths)
        hidden_TR = _FUNCTIONS[activation](_product(x, factors_DR[0], first_scale, rows))
        if activation in GATED:
            up_scale = first_scale if scales.up_scale is None else scales.up_scale
            hidden_TR = hidden_TR * _product(x, factors_DR[1], up_scale, rows)
        if scales.hidden_scale is not None:
            hidden_TR[:, :rows] *= scales.hidden_scale.astype(np.float64)[
                :, scales.units_of(widths)
            ]
        product_TR = hidden_TR * weight_TE[:, owner_R]
        hidden_TR = np.where(chosen_TE[:, owner_R], product_TR, 0.0)
        y_TD: NDArray[Any] = (hidden_TR @ down_RD).astype(x_TD.dtype)
    return y_TD


def _product(
    x_TD: NDArray[np.float64],
    factor_DR: NDArray[np.float64],
    scale_TD: NDArray[Any] | None,
    rows: int,
) -> NDArray[np.float64]:
    """Product [T, R] of x and a factor; its first `rows` columns see x times the scale."""
    if scale_TD is None:
        return x_TD @ factor_DR
    scaled = (x_TD * scale_TD.astype(np.float64)) @ factor_DR[:, :rows]
    return np.concatenate([scaled, x_TD @ factor_DR[:, rows:]], axis=1)


def silu(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes a / (1 + exp(-a)), elementwise.

    >>> float(silu(np.array([0.0]))[0])
    0.0
    """
    return a / (1.0 + np.exp(-a))


def gelu(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes 0.5 * a * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 * a ** 3))), elementwise.

    Written as a * sigmoid(2 z), with z the argument of tanh. That keeps its precision for negative
    a, where 1 + tanh(z) would cancel.

    >>> float(gelu(np.array([0.0]))[0])
    0.0
    """
    twice_z: NDArray[np.float64] = a * (GELU_LINEAR + GELU_CUBIC * a * a)
    return a / (1.0 + np.exp(-twice_z))


GELU_LINEAR = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = GELU_LINEAR * 0.044715

_FUNCTIONS: dict[Activation, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "swiglu": silu,
    "geglu": gelu,
    "silu": silu,
    "relu": lambda a: np.maximum(a, 0.0),
    "relu2": lambda a: np.maximum(a, 0.0) ** 2,
}
"""Function of the gate's product, or of up's where there is no gate."""


def weight_values(weight: Weight) -> NDArray[np.float64]:
    """Values [K, N] of a weight, exactly."""
    stored = weight.dequantized() if isinstance(weight, QuantizedMatrix) else weight
    return stored.astype(np.float64)


def _check(
    x: NDArray[Any],
    indices: NDArray[Any],
    weights: NDArray[Any],
    experts: Sequence[Expert],
    roles: tuple[str, ...],
) -> None:
    if x.ndim != 2 or x.dtype not in DTYPES:
        raise ShapeError(f"x is {x.dtype} {list(x.shape)}, expected [T, D] in float32 or float16")
    if indices.ndim != 2 or indices.shape[0] != x.shape[0] or indices.dtype != np.int64:
        raise ShapeError(
            f"expert_indices is {indices.dtype} {list(indices.shape)}, expected int64 "
            f"[{x.shape[0]}, K]"
        )
    if not 1 <= indices.shape[1] <= len(experts):
        raise ShapeError(
            f"expert_indices has {indices.shape[1]} columns, expected 1 to {len(experts)}"
        )
    if weights.shape != indices.shape or weights.dtype != x.dtype:
        raise ShapeError(
            f"routing_weights is {weights.dtype} {list(weights.shape)}, expected {x.dtype} "
            f"{list(indices.shape)}"
        )
    outside = (indices < 0) | (indices >= len(experts))
    if outside.any():
        raise ShapeError(
            f"expert_indices holds {int(indices[outside][0])}, expected 0 to {len(experts) - 1}"
        )
    for number, expert in enumerate(experts):
        _check_expert(x, expert, roles, prefix="", suffix=f"_{number}")


def _check_shared(
    x: NDArray[Any], shared: Expert, weight: NDArray[Any], roles: tuple[str, ...]
) -> None:
    _check_expert(x, shared, roles, prefix="shared_", suffix="")
    if weight.shape != (x.shape[0], 1) or weight.dtype != x.dtype:
        raise ShapeError(
            f"shared_weight is {weight.dtype} {list(weight.shape)}, expected {x.dtype} "
            f"{[x.shape[0], 1]}"
        )


def _check_expert(
    x: NDArray[Any], expert: Expert, roles: tuple[str, ...], *, prefix: str, suffix: str
) -> None:
    if len(expert) != len(roles):
        raise ShapeError(f"an expert has {len(expert)} weights, expected {', '.join(roles)}")
    hidden, width = x.shape[1], expert[0].shape[-1]
    for role, weight in zip(roles, expert, strict=True):
        shape = (width, hidden) if role == "down" else (hidden, width)
        dtype = weight.scale.dtype if isinstance(weight, QuantizedMatrix) else weight.dtype
        if weight.shape != shape or dtype not in (x.dtype, ml_dtypes.bfloat16):
            raise ShapeError(
                f"{prefix}{role}{suffix} is {dtype} {list(weight.shape)}, expected {x.dtype} "
                f"{list(shape)}"
            )
