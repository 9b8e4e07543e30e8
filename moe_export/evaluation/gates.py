"""Gates: the limits of a recipe, held against the results of validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from moe_export.artifacts.validation import Gate, Parity, ProviderResults
from moe_export.errors import GateError
from moe_export.recipe import GateSettings
from moe_export.variants import BASELINE, PRUNED, QUANTIZED

FINITE_LOGITS = "finite_logits"
"""Name of the gate that no recipe switches off: the share of positions with finite logits."""

DEFAULT_KL, DEFAULT_MAX_KL_NATS = "default_max_kl_nats", 0.5
"""Name and limit of the warning where no limit of the recipe guards the result. At 1.7 to 1.9 nats
SmolLM2-135M answers 43 % of the questions of docs/results/real_model.md, unpruned 78 %."""


def check_gates(
    limits: GateSettings,
    providers: Mapping[str, ProviderResults],
    product: str,
    recovery: float | None,
) -> tuple[Gate, ...]:
    """Returns every limit that applies, with its measured value.

    A limit that the recipe gives and whose value cannot be computed fails, with the reason. A limit
    that is left at its default applies where there is a value.

    Args:
        limits: gates of the recipe.
        providers: results by execution provider.
        product: name of the last variant, whose divergence is limited.
        recovery: recovery of the product, see `Validation`; None if not known.
    """
    return tuple(
        gate
        for provider, results in providers.items()
        for gate in (
            *_finite_gates(provider, results),
            *_pruned_gates(limits, provider, results),
            *_quantized_gates(limits, provider, results),
            *_product_gates(limits, provider, results, product, recovery),
        )
    )


def check_unguarded(
    limits: GateSettings, results: ProviderResults, provider: str, product: str
) -> Gate | None:
    """Holds a default limit of KL against a result that no limit of the recipe guards.

    The other limits compare the exported files with torch, and pass on a model that has forgotten
    everything.

    Args:
        limits: gates of the recipe.
        results: results on the first execution provider.
        provider: name of that provider.
        product: name of the last variant.

    Returns:
        The limit and its outcome; None if the recipe limits recovery or KL.
    """
    if limits.min_recovery is not None or limits.max_kl_nats is not None:
        return None
    divergences = _divergences(results, product)
    if divergences:
        return _at_most(DEFAULT_KL, provider, DEFAULT_MAX_KL_NATS, max(divergences))
    reason = _no_baseline(results) or "no task was scored; give validate.tasks"
    return Gate(
        name=DEFAULT_KL,
        provider=provider,
        limit=DEFAULT_MAX_KL_NATS,
        value=None,
        passed=False,
        detail=reason,
    )


def _divergences(results: ProviderResults, product: str) -> list[float]:
    """KL of the product from the baseline on every task, in nats; empty without a baseline."""
    tasks = results.variants[product].tasks.values()
    return [scores.kl_nats for scores in tasks if scores.kl_nats is not None]


def _finite_gates(provider: str, results: ProviderResults) -> Iterator[Gate]:
    """Yields a failed gate for each variant whose logits are not all finite."""
    for variant, found in (results.not_finite or {}).items():
        yield Gate(
            name=FINITE_LOGITS,
            provider=provider,
            limit=1.0,
            value=1 - found.positions / found.of,
            passed=False,
            detail=(
                f"the logits of {variant} are infinite or NaN at {found.positions} of {found.of} "
                f"positions, first in layer {found.first_layer} at {found.first_tensor}; set "
                "export.dtype to float32, with quantize.experts: bfloat16 for experts in two bytes"
            ),
        )


def _pruned_gates(limits: GateSettings, provider: str, results: ProviderResults) -> Iterator[Gate]:
    """Yields the gates of the pruned model, exported against torch."""
    parity, greedy = results.parity.get(PRUNED), results.greedy.get(PRUNED)
    if parity:
        gate = _at_most("max_logit_error", provider, limits.max_logit_error, parity.max_logit_error)
        yield gate if gate.passed else gate.model_copy(update={"detail": _ties(parity)})
    else:
        yield from _missing("max_logit_error", provider, limits, _no_parity(results, PRUNED))
    if greedy:
        yield _at_least(
            "min_greedy_agreement", provider, limits.min_greedy_agreement, greedy.agreement
        )
    else:
        reason = "no task has prompts that fit" if parity else _no_parity(results, PRUNED)
        yield from _missing("min_greedy_agreement", provider, limits, reason)


def _ties(parity: Parity) -> str | None:
    """Sentence about equal logits of the router at which the difference begins, if there are."""
    if not parity.tied_tokens:
        return None
    return (
        f"the router of layer {parity.first_bad_layer} has equal logits at the edge of its choice "
        f"for {parity.tied_tokens} of {parity.tokens} tokens, where ONNX Runtime and torch may "
        "choose other experts"
    )


def _quantized_gates(
    limits: GateSettings, provider: str, results: ProviderResults
) -> Iterator[Gate]:
    """Yields the gates of the quantized model, exported against torch."""
    if parity := results.parity.get(QUANTIZED):
        yield _at_most(
            "max_quantized_kl_nats", provider, limits.max_quantized_kl_nats, parity.kl_nats
        )
        yield _at_least(
            "min_quantized_top1_agreement",
            provider,
            limits.min_quantized_top1_agreement,
            parity.top1_agreement,
        )
    else:
        for name in ("max_quantized_kl_nats", "min_quantized_top1_agreement"):
            yield from _missing(name, provider, limits, _no_parity(results, QUANTIZED))


def _product_gates(
    limits: GateSettings,
    provider: str,
    results: ProviderResults,
    product: str,
    recovery: float | None,
) -> Iterator[Gate]:
    """Yields the gates between the product and the baseline."""
    divergences = _divergences(results, product)
    if limits.max_kl_nats is not None and divergences:
        yield _at_most("max_kl_nats", provider, limits.max_kl_nats, max(divergences))
    else:
        reason = _no_baseline(results) or "no task was scored; give validate.tasks"
        yield from _missing("max_kl_nats", provider, limits, reason)
    if limits.min_recovery is not None and recovery is not None:
        yield _at_least("min_recovery", provider, limits.min_recovery, recovery)
    else:
        reason = _no_baseline(results) or "the baseline solves no task with answers"
        yield from _missing("min_recovery", provider, limits, reason)


def _no_parity(results: ProviderResults, variant: str) -> str:
    """Reason why a variant was not compared with torch."""
    if variant not in results.variants:
        return f"there is no {variant} model"
    return "no document was compared; give validate.tasks"


def _no_baseline(results: ProviderResults) -> str | None:
    """Reason why nothing was compared with the baseline; None if there is one."""
    if BASELINE in results.variants:
        return None
    return "there is no baseline; set export.baseline: true"


def _missing(name: str, provider: str, limits: GateSettings, reason: str) -> Iterator[Gate]:
    """Yields a failed gate if the recipe gives the limit."""
    limit: float | None = getattr(limits, name)
    if name in limits.model_fields_set and limit is not None:
        yield Gate(
            name=name, provider=provider, limit=limit, value=None, passed=False, detail=reason
        )


def _at_most(name: str, provider: str, limit: float, value: float) -> Gate:
    return Gate(name=name, provider=provider, limit=limit, value=value, passed=value <= limit)


def _at_least(name: str, provider: str, limit: float, value: float) -> Gate:
    return Gate(name=name, provider=provider, limit=limit, value=value, passed=value >= limit)


def raise_for_gates(gates: Iterable[Gate]) -> None:
    """Stops a run whose report is written if a gate failed.

    Raises:
        GateError: a limit was not met.
    """
    failed = [gate for gate in gates if not gate.passed]
    if failed:
        words = "; ".join(map(_failure, failed))
        raise GateError(f"validate.gates: {words}; the report is written, see it for the cause")


def _failure(gate: Gate) -> str:
    """Clause of a message about a gate that failed."""
    where = f"{gate.name} on {gate.provider}"
    if gate.value is None:
        return f"{where} cannot be computed: {gate.detail}"
    detail = f" ({gate.detail})" if gate.detail else ""
    return f"{where} is {gate.value:.6g}, the limit is {gate.limit:.6g}{detail}"
