"""The meaning of `RaggedMoE`, in numpy. Every other execution is tested against this one.

Legend: T tokens, D hidden, K experts per token, E experts, R rows (the sum of the widths).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.errors import ShapeError
from moe_export.experts import ExpertTable
from moe_export.formats import QuantizedMatrix
from moe_export.op.spec import EXPERT_INPUTS

DTYPES = (np.dtype(np.float32), np.dtype(np.float16))

Weight = NDArray[Any] | QuantizedMatrix
Expert = tuple[Weight, Weight, Weight]


def ragged_moe(
    x_TD: NDArray[Any],
    expert_indices_TK: NDArray[np.int64],
    routing_weights_TK: NDArray[Any],
    experts: Sequence[Expert],
    shared: Expert | None = None,
    shared_weight_T1: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The routed experts of one layer, where each expert has a width of its own.

    For a token t, with silu(a) = a / (1 + exp(-a)):

        y[t] = sum over k of routing_weights[t, k] * expert(expert_indices[t, k], x[t])
        expert(e, v) = (silu(v @ gate_e) * (v @ up_e)) @ down_e

    Written with the experts side by side along one axis R, owner[r] being the expert of row r and
    P[t, e] the sum of the routing weights that token t gives to expert e, the whole layer is

        y = ((silu(x @ gate) * (x @ up)) * P[:, owner]) @ down

    where a row whose expert the token did not choose counts as zero whatever the other factors are.

    * Routing is outside: the indices and weights are used as given. Weights need not sum to one
      and may be zero or negative. An expert that stands twice in a row of `expert_indices` counts
      twice; the order within a row does not matter.
    * An expert of width 0 ([D, 0], [D, 0], [0, D]) adds zero.
    * No tokens give an output of no rows.
    * NaN and infinities propagate within their own token's row and reach no other row. A row whose
      chosen experts are all of width 0 is zero even then.
    * A shared expert is one that every token takes besides, with the weight shared_weight[t].
    * Quantized weights mean code * scale, exactly. An execution may round x and each expert's
      hidden values to int8, 32 of them to a scale, where the weights are quantized; the native
      kernels do, unless told not to.
    * Accumulation is in float64 and the result is rounded to x's dtype once. Other executions may
      accumulate in float32 and may round the intermediate products and each expert's output to
      x's dtype. Each gives the same bits every time for the same inputs, on the same machine
      with the same number of threads.

    Args:
        x_TD: [T, D], float32 or float16.
        expert_indices_TK: [T, K] int64, each from 0 to E - 1; 1 <= K <= E.
        routing_weights_TK: [T, K], x's dtype.
        experts: for each of the E experts (gate [D, w], up [D, w], down [w, D]): in x's dtype or
            in bfloat16, or quantized with scales in x's dtype.
        shared: gate, up and down of the shared expert, if there is one.
        shared_weight_T1: [T, 1], x's dtype; given if there is a shared expert.

    Returns:
        [T, D] in x's dtype.

    Raises:
        ShapeError: if shapes or dtypes do not fit, or an expert index is not within 0 and E - 1.
    """
    _check(x_TD, expert_indices_TK, routing_weights_TK, experts)
    if shared is not None and shared_weight_T1 is not None:
        _check_shared(x_TD, shared, shared_weight_T1)
        last = np.full((x_TD.shape[0], 1), len(experts))
        expert_indices_TK = np.concatenate([expert_indices_TK, last], axis=1)
        routing_weights_TK = np.concatenate([routing_weights_TK, shared_weight_T1], axis=1)
        experts = [*experts, shared]
    tokens, num_experts = x_TD.shape[0], len(experts)
    owner_R = ExpertTable(tuple(gate.shape[1] for gate, _, _ in experts)).owner_R
    gate_DR, up_DR = (
        np.concatenate([_values(expert[i]) for expert in experts], axis=1) for i in (0, 1)
    )
    down_RD = np.concatenate([_values(down) for _, _, down in experts])

    weight_TE = np.zeros((tokens, num_experts))
    chosen_TE = np.zeros((tokens, num_experts), dtype=bool)
    row_TK = np.broadcast_to(np.arange(tokens)[:, None], expert_indices_TK.shape)
    np.add.at(weight_TE, (row_TK, expert_indices_TK), routing_weights_TK)
    chosen_TE[row_TK, expert_indices_TK] = True

    # Overflow and NaN are part of the definition here, not accidents to warn of.
    with np.errstate(over="ignore", invalid="ignore"):
        x = x_TD.astype(np.float64)
        product_TR = silu(x @ gate_DR) * (x @ up_DR) * weight_TE[:, owner_R]
        hidden_TR = np.where(chosen_TE[:, owner_R], product_TR, 0.0)
        y_TD: NDArray[Any] = (hidden_TR @ down_RD).astype(x_TD.dtype)
    return y_TD


def silu(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gives a / (1 + exp(-a)), elementwise.

    >>> float(silu(np.array([0.0]))[0])
    0.0
    """
    return a / (1.0 + np.exp(-a))


def _values(weight: Weight) -> NDArray[np.float64]:
    stored = weight.dequantized() if isinstance(weight, QuantizedMatrix) else weight
    return stored.astype(np.float64)


def _check(
    x: NDArray[Any],
    indices: NDArray[Any],
    weights: NDArray[Any],
    experts: Sequence[Expert],
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
        _check_expert(x, expert, prefix="", suffix=f"_{number}")


def _check_shared(x: NDArray[Any], shared: Expert, weight: NDArray[Any]) -> None:
    _check_expert(x, shared, prefix="shared_", suffix="")
    if weight.shape != (x.shape[0], 1) or weight.dtype != x.dtype:
        raise ShapeError(
            f"shared_weight is {weight.dtype} {list(weight.shape)}, expected {x.dtype} "
            f"{[x.shape[0], 1]}"
        )


def _check_expert(x: NDArray[Any], expert: Expert, *, prefix: str, suffix: str) -> None:
    hidden, width = x.shape[1], expert[0].shape[-1]
    for role, weight, shape in zip(
        EXPERT_INPUTS, expert, ((hidden, width), (hidden, width), (width, hidden)), strict=True
    ):
        dtype = weight.scale.dtype if isinstance(weight, QuantizedMatrix) else weight.dtype
        if weight.shape != shape or dtype not in (x.dtype, ml_dtypes.bfloat16):
            raise ShapeError(
                f"{prefix}{role}{suffix} is {dtype} {list(weight.shape)}, expected {x.dtype} "
                f"{list(shape)}"
            )
