"""Headline of a report: the last variant against the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moe_export.artifacts.measurements import Speed, SpeedSetting, Spread, headline_setting
from moe_export.artifacts.report_memory import MemoryFacts
from moe_export.artifacts.report_results import AccuracyFacts, Headline
from moe_export.artifacts.validation import Gate
from moe_export.variants import BASELINE, ordered


class Rates(NamedTuple):
    """Speeds of one variant at one setting.

    Attributes:
        prefill: prompt tokens per second.
        decode: new tokens per second.
    """

    prefill: Spread
    decode: Spread


def headline(
    kept: float,
    memory: MemoryFacts,
    accuracy: Sequence[AccuracyFacts],
    speed: Sequence[Speed],
    gates: Sequence[Gate],
) -> Headline:
    """Chooses the few figures at the top of a report.

    Args:
        kept: fraction of rows that are kept.
        memory: memory of all variants.
        accuracy: scores by provider and variant, the first provider first.
        speed: throughput at every setting.
        gates: limits of the recipe and their outcome.
    """
    weights = {entry.variant: entry.weights_bytes for entry in memory.variants}
    product = ordered(weights)[-1]
    scores = {entry.variant: entry for entry in reversed(accuracy)}
    before, after = scores.get(BASELINE), scores.get(product)
    setting = headline_setting(speed)
    rates = rates_at(speed, setting)
    own, unpruned = rates.get(product), rates.get(BASELINE)
    return Headline(
        product=product,
        kept=kept,
        baseline_weights_bytes=weights[BASELINE],
        product_weights_bytes=weights[product],
        baseline_exact_match=before.mean_exact_match if before else None,
        product_exact_match=after.mean_exact_match if after else None,
        recovery=after.recovery if after else None,
        speed_setting=setting,
        gates_passed=all(gate.passed for gate in gates),
        product_prefill_tokens_per_s=own.prefill.median if own else None,
        prefill_ratio=own.prefill.median / unpruned.prefill.median if own and unpruned else None,
        product_decode_tokens_per_s=own.decode.median if own else None,
        decode_ratio=own.decode.median / unpruned.decode.median if own and unpruned else None,
    )


def rates_at(speed: Sequence[Speed], setting: SpeedSetting | None) -> dict[str, Rates]:
    """Returns the speeds of each variant that was measured at a setting."""
    return {
        entry.variant: Rates(entry.prefill_tokens_per_s, entry.decode_tokens_per_s)
        for entry in speed
        if entry.setting == setting
    }
