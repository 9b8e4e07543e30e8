"""Verdicts of a sweep: the plan's choice at a budget against uniform points of no more bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from moe_export.artifacts.documents import DocumentsByTask
from moe_export.artifacts.sweep import KlVerdict, MatchVerdict, Point, Verdict
from moe_export.evaluation.differences import (
    ERRORS,
    Difference,
    kl_difference,
    match_difference,
    only_one_matches,
)
from moe_export.reporting.units import figures, percent

BUDGET = "bytes-"
"""Prefix of the names of points whose bytes are given."""

SLACK = 1.001
"""Factor on the budget up to which a point has no more bytes, for alignment."""


def shares(points: Sequence[Point]) -> list[str]:
    """Returns the budgets in percent, as the points' names have them."""
    names = [point.name for point in points if point.name.startswith(BUDGET)]
    return list(dict.fromkeys(name.split("-")[1] for name in names))


def verdicts(
    points: Sequence[Point], baseline_bytes: int, documents: Mapping[str, DocumentsByTask]
) -> tuple[Verdict, ...]:
    """Compares at each budget the plan's choice with the best of the others on the same documents.

    Args:
        points: points of the sweep.
        baseline_bytes: weights of the unpruned model.
        documents: document scores by the name of a point.
    """
    return tuple(_verdict(points, baseline_bytes, documents, share) for share in shares(points))


def _verdict(
    points: Sequence[Point],
    baseline_bytes: int,
    documents: Mapping[str, DocumentsByTask],
    share: str,
) -> Verdict:
    own = next(point for point in points if point.name == f"{BUDGET}{share}-auto")
    limit = float(share) / 100 * baseline_bytes * SLACK
    others = [p for p in points if p.experts != "auto" and p.weights_bytes <= limit]
    return Verdict(
        share=share,
        own=own.name,
        others=len(others),
        by_kl=_by_kl(own, others, documents),
        by_match=_by_match(own, others, documents),
    )


def _by_kl(
    own: Point, others: Sequence[Point], documents: Mapping[str, DocumentsByTask]
) -> KlVerdict | None:
    """Compares with the point of the least KL; None if it was not measured for every point."""
    measured = [(p.mean_kl_nats, p) for p in others if p.mean_kl_nats is not None]
    if own.mean_kl_nats is None or not others or len(measured) < len(others):
        return None
    _, best = min(measured, key=lambda pair: pair[0])
    gap = kl_difference(documents[own.name], documents[best.name])
    return KlVerdict(
        best=best.name,
        difference=gap.value,
        stderr=gap.stderr,
        verdict=_word(gap, better=gap.value < 0),
    )


def _by_match(
    own: Point, others: Sequence[Point], documents: Mapping[str, DocumentsByTask]
) -> MatchVerdict | None:
    """Compares with the point of the most exact matches; None without tasks with answers."""
    if own.mean_exact_match is None or not others:
        return None
    best = max(others, key=lambda point: point.mean_exact_match or 0.0)
    ours, theirs = documents[own.name], documents[best.name]
    answered = [name for name, task in own.tasks.items() if task.exact_match is not None]
    gap = match_difference(ours, theirs, answered)
    only_own, only_other = only_one_matches(ours, theirs, answered)
    return MatchVerdict(
        best=best.name,
        difference=gap.value,
        stderr=gap.stderr,
        verdict=_word(gap, better=gap.value > 0),
        only_own=only_own,
        only_other=only_other,
        documents=sum(len(ours[name].matches) for name in answered),
    )


def _word(gap: Difference, *, better: bool) -> str:
    if gap.is_within_error:
        return "equal within error"
    return "better" if better else "worse"


def sentence(points: Sequence[Point], verdict: Verdict) -> str:
    """Describes a verdict.

    Args:
        points: points of the sweep.
        verdict: verdict at one of its budgets.
    """
    by_name = {point.name: point for point in points}
    own = by_name[verdict.own]
    text = f"{verdict.share} % of the unpruned bytes: the plan's choice"
    if not verdict.others:
        return f"{text} is the only one that fits."
    text += (
        f", {percent(own.kept)} kept with {formats(own)}, has "
        f"{percent(own.mean_exact_match)} exact match and a KL of "
        f"{figures(own.mean_kl_nats)} nats; {verdict.others} uniform points have no more bytes."
    )
    if verdict.by_kl is not None:
        text += _kl_words(verdict.by_kl, by_name[verdict.by_kl.best])
    if verdict.by_match is not None:
        text += _match_words(verdict.by_match, by_name[verdict.by_match.best])
    return text


def _kl_words(verdict: KlVerdict, best: Point) -> str:
    return (
        f" By KL: {verdict.verdict}, against {figures(best.mean_kl_nats)} nats "
        f"({words(best)}) a difference of {figures(verdict.difference)} ± "
        f"{figures(verdict.stderr)}."
    )


def _match_words(verdict: MatchVerdict, best: Point) -> str:
    return (
        f" By exact match: {verdict.verdict}, against "
        f"{percent(best.mean_exact_match)} ({words(best)}) a difference of "
        f"{100 * verdict.difference:.2f} ± {100 * verdict.stderr:.2f} points; of "
        f"{verdict.documents} documents it alone has {verdict.only_own} right, the "
        f"other alone {verdict.only_other}."
    )


def explanation() -> str:
    """Describes how the verdicts are made."""
    return (
        "A verdict compares the plan's choice with the best uniform point of no more bytes, on the "
        "same documents: ± is the standard error of the difference, from the differences by "
        f"document, and what is within {ERRORS} of it is called equal within error. That the other "
        "is the best of several is not taken into account, which is to its advantage."
    )


def words(point: Point) -> str:
    """Describes a point."""
    routed = "" if point.top_k is None else f", {point.top_k} experts per token"
    return f"{percent(point.kept)} kept, {point.experts}{routed}"


def formats(point: Point) -> str:
    """Names the formats of a point's layers."""
    return point.formats if isinstance(point.formats, str) else " / ".join(point.formats)
