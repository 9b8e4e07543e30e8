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
from moe_export.evaluation.gates import check_gates, check_unguarded, raise_for_gates
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
            variants={
                name: VariantScores(tasks={"sums": task}, mean_exact_match=1.0)
                for name in ("baseline", "pruned", *(["quantized"] if torch_kl else []))
            },
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
        raise_for_gates(validation.gates)
        return
    with pytest.raises(GateError, match=f"{failed[0]} on cpu is"):
        raise_for_gates(validation.gates)


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


def without(*variants: str) -> dict[str, ProviderResults]:
    """Results in which variants are missing, and nothing was compared with what is missing."""
    (results,) = found().values()
    kept = {name: scores for name, scores in results.variants.items() if name not in variants}
    if "baseline" in variants:
        task = kept["pruned"].tasks["sums"].model_copy(update={"kl_nats": None})
        kept["pruned"] = VariantScores(tasks={"sums": task}, mean_exact_match=1.0)
    return {"cpu": results.model_copy(update={"variants": kept})}


def not_compared() -> dict[str, ProviderResults]:
    """Results without a task, so that neither torch nor a baseline was compared with anything."""
    (results,) = found().values()
    empty = VariantScores(tasks={}, mean_exact_match=None)
    facts = {"parity": {}, "greedy": {}, "variants": dict.fromkeys(("baseline", "pruned"), empty)}
    return {"cpu": results.model_copy(update=facts)}


def without_prompts() -> dict[str, ProviderResults]:
    (results,) = found().values()
    return {"cpu": results.model_copy(update={"greedy": {"pruned": None}})}


NO_BASELINE = "there is no baseline; set export.baseline: true"
NO_DOCUMENT = "no document was compared; give validate.tasks"
NO_TASK = "no task was scored; give validate.tasks"


@pytest.mark.parametrize(
    ("limit", "facts", "reason"),
    [
        ({"max_logit_error": 1e-4}, not_compared(), NO_DOCUMENT),
        ({"min_greedy_agreement": 1.0}, not_compared(), NO_DOCUMENT),
        ({"min_greedy_agreement": 1.0}, without_prompts(), "no task has prompts that fit"),
        ({"max_quantized_kl_nats": 1e-3}, found(), "there is no quantized model"),
        ({"min_quantized_top1_agreement": 0.9}, found(), "there is no quantized model"),
        ({"max_kl_nats": 0.1}, without("baseline"), NO_BASELINE),
        ({"max_kl_nats": 0.1}, not_compared(), NO_TASK),
        ({"min_recovery": 0.9}, without("baseline"), NO_BASELINE),
        ({"min_recovery": 0.9}, found(), "the baseline solves no task with answers"),
    ],
)
def test_a_limit_of_the_recipe_that_cannot_be_computed_fails_by_name(
    limit: dict[str, float], facts: dict[str, ProviderResults], reason: str
) -> None:
    gates = check_gates(GateSettings.model_validate(limit), facts, "pruned", None)
    (name,) = limit
    (gate,) = (gate for gate in gates if not gate.passed)
    assert (gate.name, gate.value, gate.detail) == (name, None, reason)
    with pytest.raises(GateError, match=f"{name} on cpu cannot be computed: {reason}"):
        raise_for_gates(gates)
    others = check_gates(GateSettings(), facts, "pruned", None)
    assert name not in [gate.name for gate in others if not gate.passed]


def test_a_failed_parity_says_that_the_router_has_ties() -> None:
    facts = found(error=0.9)
    parity = (
        facts["cpu"].parity["pruned"].model_copy(update={"first_bad_layer": 3, "tied_tokens": 40})
    )
    facts = {"cpu": facts["cpu"].model_copy(update={"parity": {"pruned": parity}})}
    gates = check_gates(LIMITS, facts, "pruned", 0.95)
    words = r"max_logit_error .*\(the router of layer 3 has equal logits at the edge .* 40 of 100"
    with pytest.raises(GateError, match=words):
        raise_for_gates(gates)


def test_a_default_limit_warns_where_no_limit_guards_the_result() -> None:
    results = facts_of(kl_nats=1.86)
    warning = check_unguarded(GateSettings(), results, "cpu", "pruned")
    assert warning is not None
    assert not warning.passed
    assert warning.value == 1.86
    small = check_unguarded(GateSettings(), facts_of(kl_nats=0.01), "cpu", "pruned")
    assert small is not None
    assert small.passed
    unknown = check_unguarded(GateSettings(), facts_of(kl_nats=None), "cpu", "pruned")
    assert unknown is not None
    assert not unknown.passed
    assert unknown.detail == "there is no baseline; set export.baseline: true"
    for limits in (GateSettings(min_recovery=0.5), GateSettings(max_kl_nats=9.0)):
        assert check_unguarded(limits, results, "cpu", "pruned") is None


def facts_of(kl_nats: float | None) -> ProviderResults:
    """Results of a pruned model alone, with one task."""
    scores = TaskScores(
        items=1,
        answer_tokens=1,
        exact_match=None,
        exact_match_stderr=None,
        loss_nats=1.0,
        perplexity=2.7,
        kl_nats=kl_nats,
    )
    variants = {"pruned": VariantScores(tasks={"task": scores}, mean_exact_match=None)}
    return ProviderResults(parity={}, greedy={}, variants=variants)
