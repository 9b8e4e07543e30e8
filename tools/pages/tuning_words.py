"""Sentences and tables of the page on tuning, from its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from tools.pages.tuning_arms import (
    ARMS,
    CONDENSERS,
    FULL,
    HALF,
    HALF_TUNED,
    MODEL,
    TOP_K,
    TOWARDS,
    Arm,
)
from tools.pages.tuning_large import large_lines
from tools.pages.tuning_skills import SKILLS

UNTRAINED = ("source", "half of the experts")
"""Ways in which nothing is trained."""

OLD_EXACT = ("arithmetic", "sums", "facts", "strings")
ENOUGH = 0.9
"""Share of the tuned full model's score that compressed experts are to reach."""

ERRORS = 2.0
"""Standard errors by which a way has to be ahead of its control."""

Row = dict[str, Any]
Rows = list[Row]


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    whole = [row for row in data["rows"] if row["keep"] == 1 and "tasks" in row]
    lines = [
        "# Tuning",
        "",
        _claim(whole),
        "",
        *_sentences(whole),
        _introduction(data),
        "",
        *_table(whole),
        *_pruned(data["rows"]),
        *_towards(whole, data.get("towards", [])),
        *_speed(data.get("speed")),
        *large_lines(data.get("large", [])),
        *_missing(data["rows"]),
    ]
    return "\n".join(lines)


def new_mean(row: Row) -> float:
    """Mean exact match on the new skills."""
    return fmean(row["tasks"][name]["exact_match"] for name in SKILLS)


def old_mean(row: Row) -> float:
    """Mean exact match on the skills that the source has."""
    return fmean(row["tasks"][name]["exact_match"] for name in OLD_EXACT)


def all_mean(row: Row) -> float:
    """Mean exact match over all skills with answers."""
    return fmean(row["tasks"][name]["exact_match"] for name in (*SKILLS, *OLD_EXACT))


def _of(rows: Rows, name: str) -> Rows:
    return [row for row in rows if row["arm"] == name]


@dataclass(frozen=True)
class Lead:
    """Lead of a way over its control, mean over the seeds that both have.

    Attributes:
        mean: Lead in exact match over all skills with answers.
        error: Its standard error; None with one seed, which tells nothing about the next.
    """

    mean: float
    error: float | None

    @property
    def verdict(self) -> str:
        """`beat`, `do not beat`, or a hedge with one seed."""
        if self.error is None:
            return "cannot be told, from one seed, to beat"
        return "beat" if self.mean > max(ERRORS * self.error, 0.0) else "do not beat"

    def __str__(self) -> str:
        error = "one seed" if self.error is None else f"± {100 * self.error:.1f}"
        return f"{100 * self.mean:+.1f} {error}"


def lead(rows: Rows, name: str, control: str) -> Lead | None:
    """Lead of a way over its control; None if they share no seed."""
    ours, theirs = ({row["seed"]: all_mean(row) for row in _of(rows, n)} for n in (name, control))
    gaps = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    if not gaps:
        return None
    return Lead(fmean(gaps), stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else None)


def _claim(rows: Rows) -> str:
    names = [arm.name for arm in ARMS if arm.name.startswith("compressed") and _of(rows, arm.name)]
    full, half = _of(rows, FULL), _of(rows, HALF_TUNED)
    if not (names and full and half):
        return "Compressed experts have not been measured on this page yet."
    best = max(names, key=lambda name: _mean(all_mean, _of(rows, name)))
    ours, goal, rival = (_mean(all_mean, _of(rows, name)) for name in (best, FULL, HALF_TUNED))
    found = lead(rows, best, HALF_TUNED)
    assert found is not None
    reach = "reach" if ours >= ENOUGH * goal else "do not reach"
    return (
        f"Compressed experts (`{best.partition(', ')[2]}`, the best of {len(names)} forms) at half "
        f"of the experts per token {reach} {ENOUGH:.0%} of the fully tuned score "
        f"({ours / goal:.1%}: {ours:.1%} of {goal:.1%}), and {found.verdict} tuning half of the "
        f"experts without them ({rival:.1%}; lead {found} points)."
    )


HEADS = {
    "beat": "Better than their controls",
    "do not beat": "No better than their controls",
    "cannot be told, from one seed, to beat": "With one seed, and so not judged",
}
"""Beginning of the sentence on the ways with each verdict."""


def _sentences(rows: Rows) -> list[str]:
    """One sentence for each verdict on ways against their controls."""
    found = {
        arm: leads for arm in ARMS if arm.control and (leads := lead(rows, arm.name, arm.control))
    }
    lines = []
    for verdict, head in HEADS.items():
        words = [
            f"{arm.name} ({leads} on {arm.control})"
            for arm, leads in found.items()
            if leads.verdict == verdict
        ]
        lines += [f"{head}: {'; '.join(words)}.", ""] if words else []
    return lines


def _introduction(data: dict[str, Any]) -> str:
    settings = data["settings"]
    tokens = max((row["tokens"] for row in data["rows"] if "tokens" in row), default=0)
    return (
        f"Made by `python -m tools.pages tuning RUN --pruned --speed` on {data['machine']} with "
        f"torch {data['versions']['torch']}. The model is `{MODEL}` with {TOP_K} experts per token;"
        f" half of them are {HALF}, and r is {CONDENSERS}. Every training has the same documents, "
        f"{settings['steps']} steps (at most {tokens:,} tokens) and learning rate "
        f"({settings['rate']:g}, cosine); about 60 % of the tokens are of two new skills, "
        "`shift` (letters moved by one) and `inverse` (the country of a capital). Other settings "
        "are the methods' defaults. Figures are "
        "exact match on held-out documents, scored in torch, the mean over the seeds with the "
        "range in brackets. A lead is in points of the mean over all six skills with answers, over "
        "the seeds that both ways have, with its standard error; a way is better if it leads by "
        f"{ERRORS:g} of them. Text is the loss "
        "in nats per token. Active bytes are those of float16 weights that a token reads. CPU time "
        "of a step is the median, with one thread on a busy machine."
    )


def _table(rows: Rows) -> list[str]:
    head = ["way", *SKILLS, "new", *OLD_EXACT, "old", "text", "active MB", "s/step", "seeds"]
    cells = []
    for arm in ARMS:
        found = _of(rows, arm.name)
        if not found:
            continue
        cells.append(
            [
                arm.name,
                *(_share(_match(name), found) for name in SKILLS),
                _share(new_mean, found),
                *(f"{100 * _mean(_match(name), found):.1f}" for name in OLD_EXACT),
                _share(old_mean, found),
                f"{_mean(lambda row: row['tasks']['text']['loss_nats'], found):.2f}",
                f"{_mean(lambda row: row['active_bytes'], found) / 1e6:.2f}",
                _seconds(found),
                str(len(found)) if arm.tunes else "",
            ]
        )
    return [*_lines(head, cells), ""] if cells else []


def _pruned(rows: Rows) -> list[str]:
    """Table of the models with part of their expert dimensions, not fitted afterwards."""
    keeps = sorted(
        {row["keep"] for row in rows if row["keep"] < 1 and "tasks" in row}, reverse=True
    )
    if not keeps:
        return []
    head = ["way", *(f"{keep:.0%} kept: {of}" for keep in keeps for of in ("new", "old", "MB"))]
    cells = [
        [arm.name, *(cell for keep in keeps for cell in _pruned_cells(rows, arm, keep))]
        for arm in ARMS
        if any(row["arm"] == arm.name and row["keep"] < 1 for row in rows)
    ]
    words = (
        "The same models pruned by `fisher_margin`, calibrated on all seven skills, and not fitted "
        "or trained afterwards; MB are the active bytes."
    )
    return ["## Pruned", "", words, "", *_lines(head, cells), ""]


def _pruned_cells(rows: Rows, arm: Arm, keep: float) -> list[str]:
    found = [row for row in _of(rows, arm.name) if row["keep"] == keep and "tasks" in row]
    if not found:
        return ["", "", ""]
    active = _mean(lambda row: row["active_bytes"], found) / 1e6
    return [_share(new_mean, found), _share(old_mean, found), f"{active:.2f}"]


def _towards(rows: Rows, towards: Rows) -> list[str]:
    """Table of models with half of the experts that were distilled towards the source."""
    if not towards:
        return []
    head = ["way", "divergence", *OLD_EXACT, "old", "text", "trained", "s/step", "seeds"]
    cells = [[name, "", *_old_cells(_of(rows, name)), "", "", ""] for name in UNTRAINED]
    for arm in TOWARDS:
        found = [row for row in _of(towards, arm.name) if "tasks" in row]
        trained = f"{found[0]['trained_parameters']:,}" if found else ""
        seeds = [trained, _seconds(found), str(len(found))]
        cells += [[arm.name, _nats(found), *_old_cells(found), *seeds]] if found else []
    words = (
        "`objective: distill` brings the model with half of the experts per token towards the "
        "source with all of them, with the same steps, rate and number of documents, of the skills "
        "that the source has. `by layer` is `tune.only`, with its steps in every layer and one "
        "layer in memory; its seconds are of one layer's step. Divergence is from the source on "
        "held-out documents, in millinats per weighted token before and after, and vectors are "
        "tied."
    )
    return ["## Towards the source", "", words, "", *_lines(head, cells), ""]


def _old_cells(rows: Rows) -> list[str]:
    if not rows:
        return [""] * (len(OLD_EXACT) + 2)
    return [
        *(f"{100 * _mean(_match(name), rows):.1f}" for name in OLD_EXACT),
        _share(old_mean, rows),
        f"{_mean(lambda row: row['tasks']['text']['loss_nats'], rows):.2f}",
    ]


def _nats(rows: Rows) -> str:
    """Mean divergence before and after, with the range after."""
    before = 1000 * _mean(lambda row: row["held_out_nats"][0], rows)
    after = [1000 * row["held_out_nats"][1] for row in rows]
    spread = f" [{min(after):.1f}, {max(after):.1f}]" if len(after) > 1 else ""
    return f"{before:.1f} → {fmean(after):.1f}{spread}"


def _speed(speed: dict[str, Any] | None) -> list[str]:
    if speed is None:
        return []
    cells = [
        [
            name,
            f"{speed['decode_tokens_per_s'][name]:.0f}",
            f"{of['median']:.2f} [{of['min']:.2f}, {of['max']:.2f}]",
        ]
        for name, of in speed["decode_of_first"].items()
    ]
    words = (
        "Decoding in ONNX Runtime with the native library, float32, one thread, batch 1; the models"
        " take turns, each in a process of its own, and the ratio is to the first of them in the "
        "same turn, with the least and the greatest, on a busy machine. Experts of so small a "
        "model take a small part of a step, so that the ratios are no prediction for large ones. "
        "Other ways were not timed."
    )
    head = ["way", "tokens/s", "of the first"]
    return ["## Speed", "", words, "", *_lines(head, cells), ""]


def _missing(rows: Rows) -> list[str]:
    """Paragraph on what stopped, and on what is not measured."""
    lines = []
    stopped = [row for row in rows if "stopped" in row]
    lines += [f"{row['arm']}, seed {row['seed']}, stopped: {row['stopped']}" for row in stopped]
    known = {row["arm"] for row in rows}
    absent = [arm.name for arm in ARMS if arm.name not in known]
    if absent:
        lines.append(f"Not measured: {'; '.join(absent)}.")
    return [item for line in lines for item in (line, "")]


def _match(name: str) -> Callable[[Row], float]:
    return lambda row: row["tasks"][name]["exact_match"]


def _mean(of: Callable[[Row], float], rows: Iterable[Row]) -> float:
    return fmean(of(row) for row in rows)


def _share(of: Callable[[Row], float], rows: Rows) -> str:
    values = [100 * of(row) for row in rows]
    spread = f" [{min(values):.0f}, {max(values):.0f}]" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}"


def _seconds(rows: Rows) -> str:
    known = [row["cpu_s_per_step"] for row in rows if row.get("cpu_s_per_step")]
    return f"{fmean(known):.2f}" if known else ""


def _lines(head: list[str], cells: list[list[str]]) -> list[str]:
    return table(Table(tuple(head), tuple(map(tuple, cells)))).splitlines()
