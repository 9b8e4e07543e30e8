"""Section of a report about weights that were fitted to make up for what was removed."""

from __future__ import annotations

from moe_export.artifacts.ledger import Distill, Ledger
from moe_export.artifacts.report_making import CompensationFacts, DistillFacts, RefitFacts
from moe_export.recipe import PruneSettings


def compensation_facts(ledger: Ledger, settings: PruneSettings) -> CompensationFacts | None:
    """Counts refitted experts and distilled routers; None if neither was asked for.

    Args:
        ledger: account of the prune stage.
        settings: the recipe's `prune` section.
    """
    refit = None
    if settings.refit_down:
        refit = RefitFacts(experts=len(ledger.refit.tensors), left=len(ledger.refit.left))
    distill = None if ledger.distill is None else _distill_facts(ledger.distill)
    return CompensationFacts(refit=refit, distill=distill) if refit or distill else None


def _distill_facts(distill: Distill) -> DistillFacts:
    return DistillFacts(
        tokens=distill.tokens,
        held_out_tokens=distill.held_out_tokens,
        held_out_kl_nats=distill.held_out_kl_nats,
        routers=len(distill.tensors),
    )
