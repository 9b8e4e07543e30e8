"""Gates: the limits of a recipe, held against the results of validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from moe_export.artifacts.validation import Gate, ProviderResults, Validation
from moe_export.errors import GateError
from moe_export.recipe import GateSettings
from moe_export.variants import PRUNED, QUANTIZED


def check_gates(
    limits: GateSettings,
    providers: Mapping[str, ProviderResults],
    product: str,
    recovery: float | None,
) -> tuple[Gate, ...]:
    """Returns every limit that applies, with its measured value.

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
            *_pruned_gates(limits, provider, results),
            *_quantized_gates(limits, provider, results),
            *_product_gates(limits, provider, results, product, recovery),
        )
    )


def _pruned_gates(limits: GateSettings, provider: str, results: ProviderResults) -> Iterator[Gate]:
    """Yields the gates of the pruned model, exported against torch."""
    if parity := results.parity.get(PRUNED):
        yield _at_most("max_logit_error", provider, limits.max_logit_error, parity.max_logit_error)
    if greedy := results.greedy.get(PRUNED):
        yield _at_least(
            "min_greedy_agreement", provider, limits.min_greedy_agreement, greedy.agreement
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


def _product_gates(
    limits: GateSettings,
    provider: str,
    results: ProviderResults,
    product: str,
    recovery: float | None,
) -> Iterator[Gate]:
    """Yields the gates between the product and the baseline."""
    tasks = results.variants[product].tasks.values()
    divergences = [scores.kl_nats for scores in tasks if scores.kl_nats is not None]
    if limits.max_kl_nats is not None and divergences:
        yield _at_most("max_kl_nats", provider, limits.max_kl_nats, max(divergences))
    if limits.min_recovery is not None and recovery is not None:
        yield _at_least("min_recovery", provider, limits.min_recovery, recovery)


def _at_most(name: str, provider: str, limit: float, value: float) -> Gate:
    return Gate(name=name, provider=provider, limit=limit, value=value, passed=value <= limit)


def _at_least(name: str, provider: str, limit: float, value: float) -> Gate:
    return Gate(name=name, provider=provider, limit=limit, value=value, passed=value >= limit)


def raise_for_gates(validation: Validation) -> None:
    """Stops a run whose report is written if a gate failed.

    Raises:
        GateError: a limit was not met.
    """
    failed = [gate for gate in validation.gates if not gate.passed]
    if failed:
        words = "; ".join(
            f"{gate.name} on {gate.provider} is {gate.value:.6g}, the limit is {gate.limit:.6g}"
            for gate in failed
        )
        raise GateError(f"validate.gates: {words}; the report is written, see it for the cause")
