"""Figures of the candidates, from their measurements.

Legend: S sequences, K sources.
"""

from __future__ import annotations

import numpy as np

from moe_export.artifacts.ranking import Candidate, MeasuredSource
from moe_export.ranking.candidates import Planned
from moe_export.ranking.held_out import HeldOutSet
from moe_export.ranking.means import Divergence, SourceMeans


def mean_kl(found: Divergence, held_out: HeldOutSet) -> float:
    """Weighted mean over the sources of the KL per scored token, nats."""
    weight_K = held_out.weight_K
    return SourceMeans.of(found.kl_S, found, len(weight_K)).over(weight_K)[0]


def row(
    candidate: Planned,
    first_kl_nats: float,
    found: Divergence | None,
    best: Divergence,
    held_out: HeldOutSet,
) -> Candidate:
    """Figures of one candidate; those of the last round are absent if it was not in it."""
    ranking = Candidate(
        score=candidate.score,
        scope=candidate.scope,
        kept=candidate.share,
        first_kl_nats=first_kl_nats,
        sources=(),
    )
    if found is None:
        return ranking
    weight_K = held_out.weight_K
    sources = len(weight_K)
    mean, stderr = SourceMeans.of(found.kl_S, found, sources).over(weight_K)
    excess, excess_stderr = SourceMeans.of(found.kl_S - best.kl_S, found, sources).over(weight_K)
    return ranking.model_copy(
        update={
            "kl_nats": mean,
            "kl_nats_stderr": stderr,
            "excess_nats": excess,
            "excess_nats_stderr": excess_stderr,
            "answer_loss_nats": answer_loss(found, held_out),
            "sources": _by_source(found, held_out),
        }
    )


def _by_source(found: Divergence, held_out: HeldOutSet) -> tuple[MeasuredSource, ...]:
    sources = len(held_out.names)
    kl = SourceMeans.of(found.kl_S, found, sources)
    loss_K = SourceMeans.of(found.loss_S, found, sources).mean_K
    return tuple(
        MeasuredSource(
            source=name,
            kl_nats=float(mean),
            kl_nats_stderr=None if np.isnan(stderr) else float(stderr),
            loss_nats=float(loss),
        )
        for name, mean, stderr, loss in zip(
            held_out.names, kl.mean_K, kl.stderr_K, loss_K, strict=True
        )
    )


def answer_loss(found: Divergence, held_out: HeldOutSet) -> float | None:
    """Weighted mean loss over the sources with answers; None if there are none."""
    weight_K = held_out.weight_K * held_out.answered_K
    if not weight_K.any():
        return None
    means = SourceMeans.of(found.loss_S, found, len(weight_K))
    return means.over(weight_K / weight_K.sum())[0]
