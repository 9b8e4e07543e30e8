"""How far an execution of `RaggedMoE` may be from the reference: one bound, from the arithmetic.

Legend: T tokens, D hidden, w width of an expert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.op.cases import Inputs


def error_bound(inputs: Inputs) -> NDArray[Any]:
    """The largest error allowed in each element of y, [T, D] float64.

    A sum of n products that is accumulated and rounded in a dtype of unit roundoff u errs by at
    most about 4 * sqrt(n) * u times the sum of the products' magnitudes, unless roundings conspire
    (Higham and Mary 2019, doi:10.1137/18M1226312). That is applied to each of the four sums of the
    definition (gate, up, down, over the experts) and carried through silu, whose slope is at most
    1.1 in magnitude. The dtype is x's: an execution may round every intermediate result to it.
    """
    dtype = inputs.x.dtype
    unit = float(np.finfo(dtype).eps) / 2
    # What gradual underflow can cost one rounding, for products too small for the dtype.
    under = float(np.finfo(dtype).smallest_subnormal)

    def gamma(terms: int) -> float:
        return 4 * float(np.sqrt(terms + 2)) * unit

    x = inputs.x.astype(np.float64)
    magnitude = np.zeros_like(x)
    bound = np.zeros_like(x)
    for expert, tensors in enumerate(inputs.experts):
        gate, up, down = (np.abs(t.astype(np.float64)) for t in tensors)
        signed_gate, signed_up = (t.astype(np.float64) for t in tensors[:2])
        hidden_size, width = gate.shape
        g, u = x @ signed_gate, x @ signed_up
        g_error = gamma(hidden_size) * (np.abs(x) @ gate) + under
        u_error = gamma(hidden_size) * (np.abs(x) @ up) + under
        silu = g / (1 + np.exp(-g))
        silu_error = 1.1 * g_error + gamma(2) * np.abs(silu) + under
        hidden = np.abs(silu * u)
        hidden_error = (
            silu_error * np.abs(u) + np.abs(silu) * u_error + silu_error * u_error
        ) + unit * hidden
        out_error = (hidden_error + under) @ down + gamma(width) * (hidden @ down) + under
        chosen = inputs.expert_indices == expert
        weight = (np.abs(inputs.routing_weights.astype(np.float64)) * chosen).sum(axis=1)[:, None]
        bound += weight * out_error
        magnitude += weight * (hidden @ down)
    return bound + gamma(inputs.expert_indices.shape[1]) * magnitude + under
