"""The peer that layers are timed beside gives the numbers of the operator, in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_export.gpu_check.fused_moe import FEW, MANY, Blocks, FusedMoe
from moe_export.testing.cases import Case, Inputs, inputs_of
from moe_export.testing.executors import run_reference
from moe_export.testing.tolerance import error_bound

CASES = (
    Case("one_token", (64,) * 5, tokens=1, top_k=2, hidden=128),
    Case("many_tokens", (64,) * 5, tokens=90, top_k=3, hidden=128),
    Case("one_expert_takes_all", (64,) * 3, tokens=140, top_k=1, hidden=128, routing="all_on_0"),
    Case("wide", (128,) * 2, tokens=20, top_k=2, hidden=256),
)
SWIZZLED = Blocks(16, 64, 64, 3, 4, 4)


def run_fused(inputs: Inputs, blocks: Blocks) -> NDArray[Any]:
    w1 = [np.concatenate([np.asarray(gate), np.asarray(up)], 1).T for gate, up, _ in inputs.experts]
    w2 = [np.asarray(down).T for _, _, down in inputs.experts]
    call = FusedMoe(
        *(
            torch.from_numpy(np.ascontiguousarray(array))
            for array in (inputs.x, w1, w2, inputs.expert_indices, inputs.routing_weights)
        ),
        blocks,
    )
    for buffer in (call.both, call.hidden, call.out, call.y):
        buffer.fill_(float("nan"))
    call.order.fill_(-(1 << 20))
    y: NDArray[Any] = call.run().numpy()
    return y


# In float32 the bound is close enough that a pair in the wrong place is seen.
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("blocks", [FEW, MANY, SWIZZLED], ids=["few", "many", "swizzled"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fused_moe_of_one_width_equals_the_reference(
    case: Case, blocks: Blocks, dtype: Any
) -> None:
    inputs = inputs_of(case, dtype, dtype)
    y = run_fused(inputs, blocks)
    error = np.abs(y.astype(np.float64) - run_reference(inputs).astype(np.float64))
    assert (error <= error_bound(inputs)).all(), f"worst {error.max()}"


def test_a_width_that_does_not_fill_its_blocks_is_refused() -> None:
    inputs = inputs_of(Case("odd", (40,) * 2, tokens=2, top_k=1, hidden=128), "float16", "float16")
    with pytest.raises(AssertionError, match="no whole blocks"):
        run_fused(inputs, FEW)
