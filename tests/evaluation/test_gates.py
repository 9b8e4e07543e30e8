from __future__ import annotations

from typing import Any

import pytest

from moe_export.errors import GateError
from moe_export.evaluation.gates import check_gates, raise_for_gates
from moe_export.recipe import GateSettings


def found(
    error: float = 1e-6,
    agreement: float = 1.0,
    kl: float = 0.01,
    torch_kl: float | None = None,
    torch_top1: float = 0.99,
) -> dict[str, Any]:
    quantized = {}
    if torch_kl is not None:
        quantized = {"quantized": {"kl_nats": torch_kl, "top1_agreement": torch_top1}}
    return {
        "cpu": {
            "parity": {"pruned": {"max_logit_error": error}} | quantized,
            "greedy": {"pruned": {"agreement": agreement}},
            "product": {"tasks": {"sums": {"kl_nats": kl}}},
        }
    }


LIMITS = GateSettings(max_kl_nats=0.1, min_recovery=0.9)


@pytest.mark.parametrize(
    ("facts", "recovery", "failed"),
    [
        (found(), 0.95, []),
        (found(error=1e-3), 0.95, ["max_logit_error"]),
        (found(error=float("nan")), 0.95, ["max_logit_error"]),
        (found(agreement=0.99), 0.95, ["min_greedy_agreement"]),
        (found(kl=0.2), 0.95, ["max_kl_nats"]),
        (found(), 0.85, ["min_recovery"]),
        (found(torch_kl=0.001), 0.95, []),
        (found(torch_kl=0.02), 0.95, ["max_quantized_kl_nats"]),
        (found(torch_kl=float("nan")), 0.95, ["max_quantized_kl_nats"]),
        (found(torch_kl=0.001, torch_top1=0.8), 0.95, ["min_quantized_top1_agreement"]),
    ],
)
def test_each_limit_fails_on_its_own(
    facts: dict[str, Any], recovery: float, failed: list[str]
) -> None:
    gates = check_gates(LIMITS, facts, recovery)
    assert [gate["name"] for gate in gates if not gate["passed"]] == failed
    if not failed:
        raise_for_gates({"gates": gates})
        return
    with pytest.raises(GateError, match=f"{failed[0]} on cpu is"):
        raise_for_gates({"gates": gates})


def test_limits_that_do_not_apply_are_not_listed() -> None:
    gates = check_gates(GateSettings(), found() | {}, None)
    assert [gate["name"] for gate in gates] == ["max_logit_error", "min_greedy_agreement"]


def test_a_float_model_that_was_not_exported_has_no_limits() -> None:
    facts = found(torch_kl=0.5)
    del facts["cpu"]["parity"]["pruned"], facts["cpu"]["greedy"]["pruned"]
    gates = check_gates(GateSettings(), facts, None)
    assert [gate["name"] for gate in gates] == [
        "max_quantized_kl_nats",
        "min_quantized_top1_agreement",
    ]
