"""Section of a report about weights that were fitted to make up for what was removed."""

from __future__ import annotations

from moe_export.artifacts.ledger import Distill, Ledger, Refit
from moe_export.artifacts.report_making import CompensationFacts, DistillFacts, RefitFacts
from moe_export.recipe import PruneSettings


def compensation_facts(ledger: Ledger, settings: PruneSettings) -> CompensationFacts | None:
    """Counts refitted experts and distilled routers; None if neither was asked for.

    Args:
        ledger: account of the prune stage.
        settings: the recipe's `prune` section.
    """
    refit = _refit_facts(ledger.refit, settings) if settings.refit else None
    distill = None if ledger.distill is None else _distill_facts(ledger.distill)
    return CompensationFacts(refit=refit, distill=distill) if refit or distill else None


def _refit_facts(refit: Refit, settings: PruneSettings) -> RefitFacts:
    blocks = refit.blocks or ()
    distilled = sum(block.is_distilled for block in blocks)
    return RefitFacts(
        experts=refit.experts or 0,
        left=len(refit.left),
        distilled_blocks=distilled if settings.block_steps else None,
        error_pruned=_mean([block.pruned for block in blocks]),
        error_fitted=_mean([block.taken for block in blocks]),
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _distill_facts(distill: Distill) -> DistillFacts:
    return DistillFacts(
        tokens=distill.tokens,
        held_out_tokens=distill.held_out_tokens,
        held_out_kl_nats=distill.held_out_kl_nats,
        routers=len(distill.tensors),
    )
