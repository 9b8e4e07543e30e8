"""Bar pictures: memory by class, accuracy by task, speed by setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moe_export.artifacts.measurements import Speed, Spread
from moe_export.artifacts.report import Report
from moe_export.artifacts.report_results import TaskFacts
from moe_export.reporting.figures import FONT_SIZE, HALF, Canvas, bare
from moe_export.reporting.palette import CLASS_COLOURS, class_colour, colour, variant_colour
from moe_export.reporting.units import figures, points, size

BAR, BAR_GAP, GROUP_GAP = 15, 3, 15
"""Height of a bar, space between bars and space between groups, in pixels."""

CHARACTER = 6.6
"""Estimated width of a character in pixels, on the large side for the fonts in use."""


Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Bar:
    """One bar: its variant, its length, and the ends of its whisker."""

    variant: str
    value: float
    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Group:
    """Bars under one name, compared with each other."""

    name: str
    bars: Sequence[Bar]


def memory_bars(report: Report) -> str:
    """Draws one bar per variant, made of the classes of its weights."""
    variants = report.memory.variants
    # The experts come first, so that what shrinks is aligned.
    sums = {
        entry.variant: {
            name: sum(e.weights_bytes for e in entry.classes if class_colour(e.name) == name)
            for name in CLASS_COLOURS
        }
        for entry in variants
    }
    most = max(sum(classes.values()) for classes in sums.values())
    bar, pitch, top = 40, 72, 58
    canvas = Canvas("memory", HALF, top + pitch * len(variants) + 4)
    left = 0.0
    for name in CLASS_COLOURS:
        if any(classes[name] for classes in sums.values()):
            canvas.swatch(left, 14, name, name)
            left += 31 + CHARACTER * len(name)
    for number, (variant, classes) in enumerate(sums.items()):
        y = top + pitch * number
        canvas.text(0, y - 12, variant)
        total = sum(classes.values())
        canvas.text(HALF, y - 12, size(total), ha="right")
        panel = canvas.axes(0, y, HALF, bar)
        panel.axis("off")
        panel.set(xlim=(0, most), ylim=(0, 1))
        start = 0.0
        for name, bytes_ in classes.items():
            panel.barh(
                0.5, bytes_, height=1, left=start, color=colour(name), linewidth=0, align="center"
            )
            words = size(bytes_)
            if bytes_ / most * HALF > CHARACTER * len(words) + 8:
                ink = colour("on-high" if name == "experts" else "on-light")
                panel.text(
                    start + bytes_ / 2, 0.46, words, ha="center", va="center", color=ink,
                    fontsize=FONT_SIZE,
                )  # fmt: skip
            start += bytes_
    words = ", ".join(
        f"{variant} {size(sum(classes.values()))}" for variant, classes in sums.items()
    )
    return canvas.svg(f"Bytes of weights by class: {words}.")


def accuracy_bars(report: Report, provider: str) -> str | None:
    """Draws the exact match of every task with answers; None without such tasks."""
    groups = [
        Group(
            name,
            [
                Bar(variant, rate, max(rate - error, 0), min(rate + error, 1), f"{points(rate)} %")
                for variant, scores in variants
                if (rate := scores.exact_match) is not None
                for error in [scores.exact_match_stderr or 0.0]
            ],
        )
        for name, variants in _by_task(report, provider)
        if variants[0][1].exact_match is not None
    ]
    if not groups:
        return None
    canvas = _grouped(f"accuracy {provider}", groups, 1.0, "exact match")
    return canvas.svg(f"Exact match by task. {_spoken(groups)}")


def loss_bars(report: Report, provider: str) -> str | None:
    """Draws the loss of the tasks without answers (plain text); None without such tasks."""
    groups = [
        Group(
            name,
            [
                Bar(variant, loss, loss, loss, figures(loss))
                for variant, scores in variants
                for loss in [scores.loss_nats]
            ],
        )
        for name, variants in _by_task(report, provider)
        if variants[0][1].exact_match is None
    ]
    if not groups:
        return None
    canvas = _grouped(
        f"loss {provider}", groups, _most(groups), "loss, nats per token (less is better)"
    )
    return canvas.svg(f"Loss on text in nats per token. {_spoken(groups)}")


def speed_bars(report: Report, provider: str, phase: Phase) -> str | None:
    """Draws tokens per second at every setting, with whiskers from the least to the most.

    Args:
        report: report of the run.
        provider: execution provider of the measurements.
        phase: `prefill` or `decode`.

    Returns:
        The SVG; None without measurements.
    """
    entries = [entry for entry in report.speed if entry.provider == provider]
    settings = dict.fromkeys((entry.batch_size, entry.threads) for entry in entries)
    groups = [
        Group(
            f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}",
            [
                Bar(
                    entry.variant,
                    rate.median,
                    rate.min,
                    rate.max,
                    figures(rate.median),
                )
                for entry in entries
                if (entry.batch_size, entry.threads) == (batch, threads)
                for rate in [_rate(entry, phase)]
            ],
        )
        for batch, threads in sorted(settings)
    ]
    if not groups:
        return None
    canvas = _grouped(f"{phase} {provider}", groups, _most(groups), f"{phase}, tokens per second")
    return canvas.svg(f"Tokens per second of {phase}. {_spoken(groups)}")


def _by_task(report: Report, provider: str) -> list[tuple[str, list[tuple[str, TaskFacts]]]]:
    """Returns by task name the scores of every variant."""
    entries = [entry for entry in report.accuracy if entry.provider == provider]
    return [
        (task.task, [(entry.variant, entry.tasks[place]) for entry in entries])
        for place, task in enumerate(entries[0].tasks)
    ]


def _rate(entry: Speed, phase: Phase) -> Spread:
    return entry.prefill_tokens_per_s if phase == "prefill" else entry.decode_tokens_per_s


def _most(groups: Sequence[Group]) -> float:
    return max(bar.high for group in groups for bar in group.bars)


def _spoken(groups: Sequence[Group]) -> str:
    return " ".join(
        f"{group.name}: {', '.join(f'{bar.variant} {bar.label}' for bar in group.bars)}."
        for group in groups
    )


def _grouped(name: str, groups: Sequence[Group], most: float, title: str) -> Canvas:
    """Draws groups of bars from the top down, names on the left and values on the right."""
    names = min(max(len(group.name) for group in groups), 22)
    left, right, top = 14 + CHARACTER * names, 60, 58
    height = sum(_height(group) + GROUP_GAP for group in groups)
    canvas = Canvas(name, HALF, top + height)
    width = HALF - left - right
    panel = bare(canvas.axes(left, top, width, height - GROUP_GAP), grid="x")
    panel.set(xlim=(0, most or 1), ylim=(height - GROUP_GAP, 0), yticks=[])
    panel.locator_params(axis="x", nbins=4)
    panel.tick_params(labelbottom=False)
    panel.spines.left.set_visible(True)
    canvas.text(0, 14, title, color=colour("muted"))
    variants = dict.fromkeys(bar.variant for group in groups for bar in group.bars)
    at = left
    for variant in variants:
        canvas.swatch(at, 38, variant_colour(variant), variant)
        at += 30 + CHARACTER * len(variant)
    y = 0.0
    for group in groups:
        words = group.name if len(group.name) <= names else group.name[: names - 1] + "…"
        canvas.text(left - 10, top + y + _height(group) / 2, words, ha="right")
        for bar in group.bars:
            _bar(panel, canvas, bar, y, (left + width, top))
            y += BAR + BAR_GAP
        y += GROUP_GAP - BAR_GAP
    return canvas


def _bar(panel: Any, canvas: Canvas, bar: Bar, y: float, origin: tuple[float, float]) -> None:
    middle = y + BAR / 2
    panel.barh(
        middle, bar.value, height=BAR, color=colour(variant_colour(bar.variant)), linewidth=0
    )
    if bar.high > bar.low:
        panel.hlines(middle, bar.low, bar.high, color=colour("ink"), linewidth=1.2, clip_on=False)
        panel.vlines([bar.low, bar.high], middle - 3, middle + 3, color=colour("ink"),
                     linewidth=1.2, clip_on=False)  # fmt: skip
    canvas.text(HALF, origin[1] + middle, bar.label, ha="right")


def _height(group: Group) -> float:
    return len(group.bars) * (BAR + BAR_GAP) - BAR_GAP
