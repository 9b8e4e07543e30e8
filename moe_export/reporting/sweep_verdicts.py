"""Whether the plan's own choice at a budget holds against uniform points of no more bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moe_export.evaluation.differences import (
    ERRORS,
    Difference,
    OfTasks,
    kl_difference,
    match_difference,
    only_one_matches,
)
from moe_export.reporting.units import figures, percent

Point = Mapping[str, Any]

BUDGET = "bytes-"
"""What names of points begin with whose bytes are given."""

SLACK = 1.001
"""Bytes above the budget that a point may have and still count as of no more: alignment."""


def shares(points: Sequence[Point]) -> list[str]:
    """The budgets, as their points' names have them, in percent."""
    names = [point["name"] for point in points if point["name"].startswith(BUDGET)]
    return list(dict.fromkeys(name.split("-")[1] for name in names))


def verdicts(
    points: Sequence[Point], baseline_bytes: int, documents: Mapping[str, OfTasks]
) -> list[dict[str, Any]]:
    """For each budget the plan's choice, held against the best of the others on the same documents.

    Args:
        points: of the sweep.
        baseline_bytes: weights of the unpruned model.
        documents: by point.

    Returns:
        Plain JSON values; of a criterion that was not measured None, and so where no other fits.
    """
    return [_verdict(points, baseline_bytes, documents, share) for share in shares(points)]


def _verdict(
    points: Sequence[Point], baseline_bytes: int, documents: Mapping[str, OfTasks], share: str
) -> dict[str, Any]:
    own = next(p for p in points if p["name"] == f"{BUDGET}{share}-auto")
    limit = float(share) / 100 * baseline_bytes * SLACK
    others = [p for p in points if p["experts"] != "auto" and p["weights_bytes"] <= limit]
    found: dict[str, Any] = {
        "share": share,
        "own": own["name"],
        "others": len(others),
        "by_kl": None,
        "by_match": None,
    }
    ours = documents[own["name"]]
    if others and all(p["mean_kl_nats"] is not None for p in (own, *others)):
        best = min(others, key=lambda p: p["mean_kl_nats"])
        gap = kl_difference(ours, documents[best["name"]])
        found["by_kl"] = _judged(best, gap, better=gap.value < 0)
    if others and own["mean_exact_match"] is not None:
        best = max(others, key=lambda p: p["mean_exact_match"])
        theirs = documents[best["name"]]
        answered = [name for name, task in own["tasks"].items() if task["exact_match"] is not None]
        gap = match_difference(ours, theirs, answered)
        only_own, only_other = only_one_matches(ours, theirs, answered)
        found["by_match"] = _judged(best, gap, better=gap.value > 0) | {
            "only_own": only_own,
            "only_other": only_other,
            "documents": sum(len(ours[name]["matches"]) for name in answered),
        }
    return found


def _judged(best: Point, gap: Difference, *, better: bool) -> dict[str, Any]:
    word = "better" if better else "worse"
    return {
        "best": best["name"],
        "difference": gap.value,
        "stderr": gap.stderr,
        "verdict": "equal within error" if gap.is_within_error else word,
    }


def sentence(points: Sequence[Point], found: Mapping[str, Any]) -> str:
    """One of `verdicts` in words."""
    by_name = {point["name"]: point for point in points}
    own = by_name[found["own"]]
    text = f"{found['share']} % of the unpruned bytes: the plan's choice"
    if not found["others"]:
        return f"{text} is the only one that fits."
    text += (
        f", {percent(own['kept'])} kept with {formats(own)}, has "
        f"{percent(own['mean_exact_match'])} exact match and a KL of "
        f"{figures(own['mean_kl_nats'])} nats; {found['others']} uniform points have no more bytes."
    )
    by_kl, by_match = found["by_kl"], found["by_match"]
    if by_kl is not None:
        best = by_name[by_kl["best"]]
        text += (
            f" By KL: {by_kl['verdict']}, against {figures(best['mean_kl_nats'])} nats "
            f"({words(best)}) a difference of {figures(by_kl['difference'])} ± "
            f"{figures(by_kl['stderr'])}."
        )
    if by_match is not None:
        best = by_name[by_match["best"]]
        text += (
            f" By exact match: {by_match['verdict']}, against "
            f"{percent(best['mean_exact_match'])} ({words(best)}) a difference of "
            f"{100 * by_match['difference']:.2f} ± {100 * by_match['stderr']:.2f} points; of "
            f"{by_match['documents']} documents it alone has {by_match['only_own']} right, the "
            f"other alone {by_match['only_other']}."
        )
    return text


def explanation() -> str:
    """How the verdicts are made."""
    return (
        "A verdict compares the plan's choice with the best uniform point of no more bytes, on the "
        "same documents: ± is the standard error of the difference, from the differences by "
        f"document, and what is within {ERRORS} of it is called equal within error. That the other "
        "is the best of several is not taken into account, which is to its advantage."
    )


def words(point: Point) -> str:
    """A point in words."""
    return f"{percent(point['kept'])} kept, {point['experts']}"


def formats(point: Point) -> str:
    """The formats of its layers."""
    found = point["formats"]
    return found if isinstance(found, str) else " / ".join(found)
