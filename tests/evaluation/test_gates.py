from __future__ import annotations

import pytest

from moe_export.artifacts.validation import (
    Greedy,
    Parity,
    ProviderResults,
    TaskScores,
    Validation,
    VariantScores,
)
from moe_export.errors import GateError
from moe_export.evaluation.gates import check_gates, raise_for_gates
from moe_export.recipe import GateSettings


def found(
    error: float = 1e-6,
    agreement: float = 1.0,
    kl: float = 0.01,
    torch_kl: float | None = None,
    torch_top1: float = 0.99,
) -> dict[str, ProviderResults]:
    parity = {"pruned": parity_of(max_logit_error=error)}
    if torch_kl is not None:
        parity["quantized"] = parity_of(kl_nats=torch_kl, top1_agreement=torch_top1)
    task = TaskScores(
        items=10,
        answer_tokens=20,
        exact_match=1.0,
        exact_match_stderr=0.0,
        loss_nats=0.1,
        perplexity=1.1,
        kl_nats=kl,
    )
    return {
        "cpu": ProviderResults(
            parity=parity,
            greedy={"pruned": Greedy(prompts=4, new_tokens=8, agreement=agreement)},
            variants={"pruned": VariantScores(tasks={"sums": task}, mean_exact_match=1.0)},
        )
    }


def parity_of(
    max_logit_error: float = 0.0, kl_nats: float = 0.0, top1_agreement: float = 1.0
) -> Parity:
    return Parity(
        max_logit_error=max_logit_error,
        tokens=100,
        kl_nats=kl_nats,
        top1_agreement=top1_agreement,
        first_bad_layer=None,
    )


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
    facts: dict[str, ProviderResults], recovery: float, failed: list[str]
) -> None:
    gates = check_gates(LIMITS, facts, "pruned", recovery)
    assert [gate.name for gate in gates if not gate.passed] == failed
    validation = Validation(providers=facts, recovery=recovery, gates=gates)
    if not failed:
        raise_for_gates(validation)
        return
    with pytest.raises(GateError, match=f"{failed[0]} on cpu is"):
        raise_for_gates(validation)


def test_limits_that_do_not_apply_are_not_listed() -> None:
    gates = check_gates(GateSettings(), found(), "pruned", None)
    assert [gate.name for gate in gates] == ["max_logit_error", "min_greedy_agreement"]


def test_a_float_model_that_was_not_exported_has_no_limits() -> None:
    facts = found(torch_kl=0.5)
    del facts["cpu"].parity["pruned"], facts["cpu"].greedy["pruned"]
    gates = check_gates(GateSettings(), facts, "pruned", None)
    assert [gate.name for gate in gates] == [
        "max_quantized_kl_nats",
        "min_quantized_top1_agreement",
    ]


def test_a_failed_parity_says_that_the_router_has_ties() -> None:
    facts = found(error=0.9)
    parity = (
        facts["cpu"].parity["pruned"].model_copy(update={"first_bad_layer": 3, "tied_tokens": 40})
    )
    facts = {"cpu": facts["cpu"].model_copy(update={"parity": {"pruned": parity}})}
    gates = check_gates(LIMITS, facts, "pruned", 0.95)
    words = r"max_logit_error .*\(the router of layer 3 has equal logits at the edge .* 40 of 100"
    with pytest.raises(GateError, match=words):
        raise_for_gates(Validation(providers=facts, recovery=0.95, gates=gates))
