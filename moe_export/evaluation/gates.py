"""The limits of a recipe, held against what validation found."""

from __future__ import annotations

from typing import Any

from moe_export.errors import GateError
from moe_export.recipe import GateSettings


def check_gates(
    limits: GateSettings, providers: dict[str, Any], recovery: float | None
) -> list[dict[str, Any]]:
    """Every limit that applies, with what was found.

    Args:
        limits: of the recipe.
        providers: by provider, its `parity` and its `greedy` by variant, and the scores of the
            `product`.
        recovery: see `validation.json`; None where it is not known.
    """
    found = []

    def add(name: str, provider: str, limit: float, value: float, passed: bool) -> None:
        found.append(
            {"name": name, "provider": provider, "limit": limit, "value": value, "passed": passed}
        )

    for provider, result in providers.items():
        if "pruned" in result["parity"]:
            error, limit = result["parity"]["pruned"]["max_logit_error"], limits.max_logit_error
            add("max_logit_error", provider, limit, error, error <= limit)
        if result["greedy"].get("pruned") is not None:
            agreement = result["greedy"]["pruned"]["agreement"]
            limit = limits.min_greedy_agreement
            add("min_greedy_agreement", provider, limit, agreement, agreement >= limit)
        if "quantized" in result["parity"]:
            quantized = result["parity"]["quantized"]
            divergence, limit = quantized["kl_nats"], limits.max_quantized_kl_nats
            add("max_quantized_kl_nats", provider, limit, divergence, divergence <= limit)
            agreement, limit = quantized["top1_agreement"], limits.min_quantized_top1_agreement
            add("min_quantized_top1_agreement", provider, limit, agreement, agreement >= limit)
        scores = result["product"]["tasks"].values()
        divergences = [score["kl_nats"] for score in scores if "kl_nats" in score]
        if limits.max_kl_nats is not None and divergences:
            worst = max(divergences)
            add("max_kl_nats", provider, limits.max_kl_nats, worst, worst <= limits.max_kl_nats)
        if limits.min_recovery is not None and recovery is not None:
            limit = limits.min_recovery
            add("min_recovery", provider, limit, recovery, recovery >= limit)
    return found


def raise_for_gates(validation: dict[str, Any]) -> None:
    """Called when the report is written.

    Raises:
        GateError: a limit was not met.
    """
    failed = [gate for gate in validation["gates"] if not gate["passed"]]
    if failed:
        words = "; ".join(
            f"{gate['name']} on {gate['provider']} is {gate['value']:.6g}, the limit is "
            f"{gate['limit']:.6g}"
            for gate in failed
        )
        raise GateError(f"validate.gates: {words}; the report is written, see it for the cause")
