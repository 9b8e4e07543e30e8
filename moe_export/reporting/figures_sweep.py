"""Picture of a sweep: accuracy against bytes, and against speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_export.artifacts.sweep import Point, Sweep
from moe_export.quantization import choices_for_experts
from moe_export.reporting.figures import HALF, WIDE, Canvas, bare
from moe_export.reporting.figures_bars import CHARACTER
from moe_export.reporting.palette import COLOURS, colour
from moe_export.reporting.sweep_front import front
from moe_export.reporting.units import figures, percent, size

AUTO = "auto"
"""Format of a point whose formats the plan chose."""

_FIRST = ("pruned", "both", "quantized", "shared", "embeddings", "scales")
_OWN = "further"
NOT_FOR_POINTS = {"paper", "raised", "ink", "muted", "rule", "baseline", _OWN}
"""Names of colours that mean something else in the picture."""


def inks_of(formats: Sequence[str]) -> dict[str, str]:
    """Gives each format a colour of its own, in the order of the formats.

    >>> inks_of(["float", "int8"])
    {'float': 'pruned', 'int8': 'both', 'auto': 'further'}
    """
    more = [name for name in COLOURS if name not in {*_FIRST, *NOT_FOR_POINTS}]
    return dict(zip(formats, [*_FIRST, *more], strict=False)) | {AUTO: _OWN}


INK = inks_of(choices_for_experts())
"""Format of the experts to the name of its colour."""

WORDS = {AUTO: "the plan's choice"}


class _Axis(NamedTuple):
    """Axis of a panel: its name, the figure of a point, and the figure in words."""

    name: str
    value: Callable[[Point], float | None]
    show: Callable[[float], str]


_WEIGHTS = _Axis("weights", lambda point: point.weights_bytes, size)
_MATCH = _Axis("exact match", lambda point: point.mean_exact_match, percent)
_KL = _Axis("KL", lambda point: point.mean_kl_nats, figures)
_DECODE = _Axis("decode", lambda point: point.decode_tokens_per_s, figures)

_PANELS = (
    (_WEIGHTS, _MATCH, "exact match against weights"),
    (_WEIGHTS, _KL, "KL from the unpruned model, nats, against weights"),
    (_DECODE, _MATCH, "exact match against decode, tokens per second"),
)

HEIGHT, GAP = 260, 66


def pareto(sweep: Sweep, *, wide: bool = False) -> str:
    """Draws panels side by side or stacked; a line joins the points that no other beats in both
    bytes and accuracy.
    """
    points = [point for point in sweep.points if point.mean_exact_match is not None]
    panels = [
        panel for panel in _PANELS if any(panel[0].value(point) is not None for point in points)
    ]
    across = len(panels) if wide else 1
    down = len(panels) // across
    width = WIDE if wide else HALF
    canvas = Canvas("sweep", width, 30 + down * (HEIGHT + GAP))
    _legend(canvas, points)
    share = width / across
    for number, (across_axis, up_axis, title) in enumerate(panels):
        x, y = (number * share, 60) if wide else (0, 60 + number * (HEIGHT + GAP))
        canvas.text(x, y - 16, title, color=colour("muted"))
        panel = bare(canvas.axes(x + 46, y, share - 84, HEIGHT), grid="y")
        _panel(panel, sweep, points, across_axis, up_axis)
    spoken = "; ".join(
        f"{point.name}: {size(point.weights_bytes)}, {percent(point.mean_exact_match)}"
        for point in front(points)
    )
    return canvas.svg(f"Accuracy against bytes. Best: {spoken}.", "wide" if wide else "narrow")


def _legend(canvas: Canvas, points: Sequence[Point]) -> None:
    """Draws the colours of the formats that points have."""
    left = 0.0
    for name in [name for name in INK if any(point.experts == name for point in points)]:
        label = WORDS.get(name, name)
        canvas.swatch(left, 14, INK[name], label)
        left += 31 + CHARACTER * len(label)
    canvas.swatch(left, 14, "baseline", "unpruned")


def _panel(panel: Any, sweep: Sweep, points: Sequence[Point], across: _Axis, up: _Axis) -> None:
    """Draws the points of one panel and its ticks."""
    if (across, up) == (_WEIGHTS, _MATCH):
        _front_line(panel, points)
    # A logarithmic axis has no place for a divergence of zero.
    shown = [
        point
        for point in points
        if across.value(point) is not None and (up.value(point) or up is not _KL)
    ]
    for point in shown:
        own = point.experts == AUTO
        panel.scatter(
            across.value(point),
            up.value(point),
            s=60 if own else 34,
            color=colour(INK[point.experts]),
            marker="D" if own else "o",
            linewidths=0,
            zorder=3 if own else 2,
            clip_on=False,
        )
    unpruned = sweep.unpruned
    if across.value(unpruned) is not None and up is _MATCH:
        panel.scatter(
            across.value(unpruned),
            up.value(unpruned),
            s=34,
            color=colour("baseline"),
            linewidths=0,
            zorder=2,
            clip_on=False,
        )
    _across_ticks(panel, [across.value(point) for point in (*shown, unpruned)], across)
    if up is _KL:
        _divergence_ticks(panel, [point.mean_kl_nats or 1.0 for point in shown])
    else:
        _share_ticks(panel)


def _front_line(panel: Any, points: Sequence[Point]) -> None:
    best = front(points)
    panel.plot(
        [point.weights_bytes for point in best],
        [point.mean_exact_match for point in best],
        color=colour("rule"),
        linewidth=2,
        zorder=1,
    )


def _across_ticks(panel: Any, values: Sequence[float | None], across: _Axis) -> None:
    most = max([value for value in values if value is not None] or [1])
    ticks = [most * part / 2 for part in range(3)]
    panel.set(xlim=(0, most * 1.05))
    panel.set_xticks(ticks, [across.show(tick) for tick in ticks])


def _divergence_ticks(panel: Any, values: Sequence[float]) -> None:
    """Labels the decades of a logarithmic axis from the least value to 1 nat."""
    lowest, highest = int(np.floor(np.log10(min(values or [1])))), 1
    decades = [10.0**power for power in range(lowest, highest)]
    panel.set_yscale("log")
    panel.minorticks_off()
    panel.set(ylim=(decades[0], decades[-1]))
    panel.set_yticks(decades, [f"{decade:g}" for decade in decades])


def _share_ticks(panel: Any) -> None:
    marks = (0, 0.25, 0.5, 0.75, 1)
    panel.set(ylim=(0, 1.02))
    panel.set_yticks(marks, [percent(mark) for mark in marks])
