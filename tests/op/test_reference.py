"""The reference itself: against a loop written from the first formula, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe_export.errors import ShapeError
from moe_export.formats import QuantizedMatrix
from moe_export.op import spec
from moe_export.op.reference import gelu as gelu_of_the_reference
from moe_export.op.reference import ragged_moe
from moe_export.testing.cases import (
    CASES,
    FACTOR_CASES,
    SCALED_CASES,
    Case,
    Inputs,
    Kind,
    inputs_of,
)
from moe_export.testing.executors import run_reference


def silu(a: float) -> float:
    return a / (1 + math.exp(-a))


def gelu(a: float) -> float:
    return 0.5 * a * (1 + math.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))


FUNCTIONS: dict[str, Callable[..., float]] = {
    "swiglu": lambda gate, up: silu(gate) * up,
    "geglu": lambda gate, up: gelu(gate) * up,
    "silu": silu,
    "relu": lambda up: max(up, 0.0),
    "relu2": lambda up: max(up, 0.0) ** 2,
}


def token_by_token(inputs: Inputs) -> np.ndarray[Any, Any]:
    """One token, one expert and one dimension at a time, in Python floats."""
    y = np.zeros(inputs.x.shape)
    scales, gated = inputs.extra_inputs, inputs.activation in spec.GATED
    starts = np.cumsum([0, *(expert[-1].shape[0] for expert in inputs.experts)])
    for t, row in enumerate(inputs.x.astype(np.float64)):
        rows = [row * scales["input_scale"][t] if "input_scale" in scales else row] * (1 + gated)
        if "up_scale" in scales:
            rows[1] = row * scales["up_scale"][t]
        chosen = [
            (e, inputs.experts[e], weight, rows)
            for e, weight in zip(inputs.expert_indices[t], inputs.routing_weights[t], strict=True)
        ]
        if inputs.shared is not None and inputs.shared_weight is not None:
            chosen.append((-1, inputs.shared, inputs.shared_weight[t, 0], [row, row]))
        for e, expert, weight, seen in chosen:
            *factors, down = (
                (w.dequantized() if isinstance(w, QuantizedMatrix) else w).astype(np.float64)
                for w in expert
            )
            for j in range(down.shape[0]):
                hidden = FUNCTIONS[inputs.activation](
                    *(math.fsum(x * factor[:, j]) for x, factor in zip(seen, factors, strict=False))
                )
                if "hidden_scale" in scales and e >= 0:
                    unit = scales["units"][starts[e] + j] if "units" in scales else j
                    hidden *= float(scales["hidden_scale"][t, unit])
                y[t] += float(weight) * hidden * down[j]
    return y


@pytest.mark.parametrize("kind", [("float32", "float32", 0), ("float32", "int4", 32)], ids=str)
@pytest.mark.parametrize(
    "case",
    [c for c in (*CASES, *FACTOR_CASES) if not c.name.endswith("wide")],
    ids=lambda case: case.name,
)
def test_the_reference_equals_a_token_by_token_loop(case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    # Both are exact to about 1e-14 before the reference rounds once to float32.
    np.testing.assert_allclose(
        run_reference(inputs), token_by_token(inputs), rtol=2**-23, atol=1e-12
    )


def test_a_token_of_nan_whose_experts_are_empty_gives_zero() -> None:
    inputs = inputs_of(Case("nan", (8, 0), tokens=1, top_k=1), "float32")
    inputs.x[:] = np.nan
    inputs.expert_indices[:] = 1
    assert not run_reference(inputs).any()


GOOD = inputs_of(CASES[2], "float32")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(GOOD, x=GOOD.x.astype(np.float64)), "x is float64"),
        (replace(GOOD, x=GOOD.x[0]), "expected \\[T, D\\]"),
        (
            replace(GOOD, expert_indices=GOOD.expert_indices[:3]),
            "expert_indices is int64 \\[3, 2\\]",
        ),
        (replace(GOOD, expert_indices=np.zeros((7, 7), np.int64)), "7 columns, expected 1 to 6"),
        (replace(GOOD, routing_weights=GOOD.routing_weights[:, :1]), "routing_weights is float32"),
        (replace(GOOD, expert_indices=GOOD.expert_indices * 0 + 6), "holds 6, expected 0 to 5"),
        (replace(GOOD, expert_indices=GOOD.expert_indices * 0 - 1), "holds -1, expected 0 to 5"),
        (
            replace(GOOD, experts=((GOOD.experts[0][2], *GOOD.experts[0][1:]), *GOOD.experts[1:])),
            "gate_0 is float32 \\[8, 48\\], expected float32 \\[48, 48\\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(bad: Inputs, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        ragged_moe(bad.x, bad.expert_indices, bad.routing_weights, bad.experts)


UNITS = SCALED_CASES[4]
SCALED = inputs_of(UNITS, "float32")
SCALES = SCALED.extra_inputs


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"input_scale": SCALES["input_scale"][:, 1:]},
            "input_scale is float32 \\[7, 47\\], expected float32 \\[7, 48\\]",
        ),
        (
            {"hidden_scale": SCALES["hidden_scale"][1:]},
            "hidden_scale is float32 \\[6, 69\\], expected float32 \\[7, W\\]",
        ),
        (
            {"hidden_scale": SCALES["hidden_scale"].astype(np.float16)},
            "hidden_scale is float16",
        ),
        (
            {"hidden_scale": SCALES["hidden_scale"][:, :40]},
            "hidden_scale has 40 columns, the hidden units are numbered 0 to 68",
        ),
        ({"units": SCALES["units"][1:]}, "units is int32 \\[112\\], expected int32 \\[113\\]"),
        ({"units": SCALES["units"] - 1}, "the hidden units are numbered -1 to 67"),
        ({"hidden_scale": None}, "units is given without hidden_scale"),
        (
            {"input_scale": None, "up_scale": SCALES["input_scale"]},
            "up_scale is given without input_scale or without a gate",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    assert SCALED.scales is not None
    with pytest.raises(ShapeError, match=message):
        run_reference(replace(SCALED, scales=replace(SCALED.scales, **changed)))


def test_factors_of_one_change_nothing() -> None:
    ones = {name: np.ones_like(array) for name, array in SCALES.items() if name != "units"}
    assert SCALED.scales is not None
    with_ones = replace(SCALED, scales=replace(SCALED.scales, **ones))
    np.testing.assert_array_equal(
        run_reference(with_ones), run_reference(replace(SCALED, scales=None))
    )


def test_an_expert_with_a_gate_that_its_activation_lacks_is_refused() -> None:
    with pytest.raises(ShapeError, match="an expert has 3 weights, expected up, down"):
        run_reference(replace(GOOD, activation="relu"))


def test_gelu_is_torchs_tanh_approximation() -> None:
    torch = pytest.importorskip("torch")
    a = np.linspace(-12, 12, 2001)
    expected = torch.nn.functional.gelu(torch.from_numpy(a), approximate="tanh").numpy()
    # torch's form cancels for negative values.
    np.testing.assert_allclose(gelu_of_the_reference(a), expected, rtol=1e-14, atol=1e-14)


def test_every_expert_has_three_inputs_after_the_common_ones() -> None:
    assert spec.input_names(1) == [
        "x",
        "expert_indices",
        "routing_weights",
        "gate_0",
        "up_0",
        "down_0",
    ]
    assert len(spec.input_names(60)) == 3 + 3 * 60
