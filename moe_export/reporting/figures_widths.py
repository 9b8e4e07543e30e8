"""Pictures of a plan: every expert's width, the widths in order, and importance in order.

Legend: L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from moe_export.artifacts.report import Report
from moe_export.artifacts.report_plan import LayerWidths
from moe_export.reporting.figures import FONT_SIZE, HALF, WIDE, Canvas, bare
from moe_export.reporting.palette import LEVELS, colour, level
from moe_export.reporting.sentences import importance_sentence, widths_sentence
from moe_export.reporting.units import percent, plain

LABELLED_CELL = 26
"""Least width of a cell with room for its number, in pixels."""

SHARED_COLUMN = 42
"""Width of the column of the shared expert, in pixels."""


def widths_map(report: Report, width: int = WIDE) -> str:
    """Draws a cell for every expert, darker the wider it is, and each layer's spread beside it."""
    layers = report.plan.layers
    widths_LE = np.array([layer.widths for layer in layers])
    most = report.plan.most_width
    num_layers, num_experts = widths_LE.shape
    left, top, gap, legend = 46, 26, 22, 44
    strip = max(118, 0.19 * width)
    shared = SHARED_COLUMN if report.plan.prunes_shared else 0
    cells = width - left - gap - strip - 14 - (shared + gap if shared else 0)
    least = 18.0 if num_layers <= 12 else 9.0
    row = min(max(0.8 * cells / num_experts, least), 32.0)
    canvas = Canvas("widths", width, top + num_layers * row + legend)

    panel = bare(canvas.axes(left, top, cells, num_layers * row), grid="x")
    panel.grid(visible=False)
    panel.set(xlim=(0, num_experts), ylim=(num_layers, 0), xticks=[])
    step = max(1, int(np.ceil(16 / row)))
    numbers = [layer.layer for layer in layers[::step]]
    panel.set_yticks(np.arange(0, num_layers, step) + 0.5, numbers)
    _cells(panel, widths_LE, most, cells / num_experts, row)
    canvas.text(left, 12, f"expert 0 to {num_experts - 1}", color=colour("muted"))
    canvas.text(0, 12, "layer", color=colour("muted"))
    after = left + cells + gap
    if shared:
        _shared(canvas, layers, (after, top, shared, row))
        after += shared + gap
    _spread(canvas, layers, most, (after, top, strip, num_layers * row))
    _scale(canvas, left, top + num_layers * row + 26, most)
    kind = "wide" if width == WIDE else "narrow"
    return canvas.svg(f"Width of every expert by layer. {widths_sentence(report)}", kind)


def _shared(canvas: Canvas, layers: Sequence[LayerWidths], place: tuple[float, ...]) -> None:
    """Draws the cells of the shared expert, darker the more of its own width is kept."""
    left, top, width, row = place
    widths_L1 = np.array([[layer.shared_width or 0] for layer in layers])
    most = max(layer.shared_width_before or 0 for layer in layers)
    panel = bare(canvas.axes(left, top, width, len(layers) * row), grid="x")
    panel.grid(visible=False)
    panel.set(xlim=(0, 1), ylim=(len(layers), 0), xticks=[], yticks=[])
    _cells(panel, widths_L1, most, width, row)
    canvas.text(left, 12, "shared", color=colour("muted"))
    if canvas.width == WIDE:  # in a narrow map the scale reaches as far
        canvas.text(left, top + len(layers) * row + 26, f"of {most}", color=colour("muted"))


def _cells(panel: Any, widths_LE: NDArray[np.int64], most: int, cell: float, row: float) -> None:
    """Draws one compound path per step of the scale, which keeps thousands of cells small."""
    # A gap of a pixel between cells, less where they are small, in units of a cell.
    inset_x, inset_y = min(0.6, 0.08 * cell) / cell, min(0.6, 0.08 * row) / row
    steps_LE = np.minimum((widths_LE / most * LEVELS).astype(int), LEVELS - 1)
    for number in range(LEVELS):
        places = np.argwhere((steps_LE == number) & (widths_LE > 0))
        if len(places):
            path = Path.make_compound_path(
                *(
                    _box(x + inset_x, y + inset_y, x + 1 - inset_x, y + 1 - inset_y)
                    for y, x in places
                )
            )
            panel.add_patch(PathPatch(path, facecolor=level(number), linewidth=0, snap=False))
    _crosses(panel, np.argwhere(widths_LE == 0), cell, row)
    if cell < LABELLED_CELL:
        return
    for (y, x), value in np.ndenumerate(widths_LE):
        if value:
            ink = colour("on-low" if steps_LE[y, x] < LEVELS // 2 else "on-high")
            panel.text(
                x + 0.5, y + 0.5, str(value), ha="center", va="center", fontsize=11, color=ink
            )  # fmt: skip


def _box(left: float, top: float, right: float, bottom: float) -> Path:
    return Path(
        [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], closed=True
    )


def _crosses(panel: Any, places: NDArray[np.int64], cell: float, row: float) -> None:
    """Crosses out the empty experts."""
    arm = 0.22 * min(cell, row)
    dx, dy = arm / cell, arm / row
    lines = [
        [(x + 0.5 - dx, y + 0.5 - sign * dy), (x + 0.5 + dx, y + 0.5 + sign * dy)]
        for y, x in places
        for sign in (-1, 1)
    ]
    panel.add_collection(LineCollection(lines, colors=colour("muted"), linewidths=1), autolim=False)


def _spread(
    canvas: Canvas, layers: Sequence[LayerWidths], most: int, place: tuple[float, ...]
) -> None:
    """Draws a line from each layer's least to its greatest width, with a dot at the median."""
    left, top, width, height = place
    panel = bare(canvas.axes(left, top, width, height), grid="x")
    at = np.arange(len(layers)) + 0.5
    low = [layer.width_min for layer in layers]
    middle = [layer.width_median for layer in layers]
    high = [layer.width_max for layer in layers]
    panel.hlines(at, low, high, color=colour("other"), linewidth=2)
    panel.scatter(middle, at, s=30, color=colour("pruned"), zorder=3, clip_on=False, linewidths=0)
    panel.set(xlim=(0, most), ylim=(len(layers), 0), yticks=[], xticks=[0, most / 2, most])
    panel.set_xticklabels([plain(0), plain(most / 2), plain(most)])
    canvas.text(left, 12, "min – median – max", color=colour("muted"))


def _scale(canvas: Canvas, left: float, top: float, most: int) -> None:
    """Draws the scale of colours by width."""
    tile = 9.0
    canvas.text(left, top, "1", color=colour("muted"))
    panel = canvas.axes(left + 12, top - 5, tile * LEVELS, 10)
    panel.axis("off")
    panel.set(xlim=(0, LEVELS), ylim=(0, 1))
    for number in range(LEVELS):
        box = _box(number, 0, number + 1, 1)
        panel.add_patch(PathPatch(box, facecolor=level(number), linewidth=0))
    canvas.text(left + 18 + tile * LEVELS, top, f"{plain(most)} kept", color=colour("muted"))
    canvas.text(left + 88 + tile * LEVELS, top, "× empty", color=colour("muted"))


def widths_profile(report: Report) -> str:
    """Draws all widths in descending order, against the one width that keeps as many rows."""
    layers = report.plan.layers
    every = np.sort(np.concatenate([layer.widths for layer in layers]))[::-1]
    most = report.plan.most_width
    canvas = Canvas("profile", HALF, 270)
    panel = bare(canvas.axes(46, 30, HALF - 64, 214), grid="y")
    for layer in layers:
        values = np.sort(layer.widths)[::-1]
        panel.plot(_ranks(values), values, color=colour("other"), linewidth=0.8, alpha=0.7)
    panel.fill_between(_ranks(every), every, color=colour("pruned"), alpha=0.12, linewidth=0)
    panel.plot(_ranks(every), every, color=colour("pruned"), linewidth=2.2)
    mean = float(every.mean())
    panel.axhline(mean, color=colour("ink"), linewidth=1, linestyle=(0, (4, 3)))
    # Above the line on the right half: the widths in order are below their mean there.
    high = mean > 0.85 * most
    panel.text(
        0.995, mean + (-0.03 if high else 0.03) * most,
        f"one width for all: {plain(round(mean, 1))}",
        ha="right", va="top" if high else "bottom", color=colour("ink"), fontsize=FONT_SIZE,
        bbox={"facecolor": colour("paper"), "linewidth": 0, "pad": 1.5, "alpha": 0.8},
    )  # fmt: skip
    panel.set(xlim=(0, 1), ylim=(0, most * 1.04))
    panel.set_yticks([0, most / 4, most / 2, 3 * most / 4, most])
    panel.set_yticklabels([plain(value) for value in (0, most / 4, most / 2, 3 * most / 4, most)])
    panel.set_xticks(
        [0, 0.25, 0.5, 0.75, 1], ["widest", "", "half of the experts", "", "narrowest"]
    )
    _tuck(panel)
    canvas.text(0, 12, "width", color=colour("muted"))
    canvas.swatch(HALF - 168, 12, "pruned", "model")
    canvas.swatch(HALF - 96, 12, "other", "each layer")
    return canvas.svg(f"Widths of all experts in order; {mean:.1f} each would keep as many.")


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.linspace(0, 1, len(values))


def importance_curve(report: Report) -> str:
    """Draws the importance held by the most important dimensions, and the part that was kept.

    The report has a curve, see `ImportanceFacts`.
    """
    facts = report.importance
    assert facts.rows_kept is not None
    assert facts.importance_kept is not None
    canvas = Canvas("importance", HALF, 300)
    panel = bare(canvas.axes(52, 30, HALF - 76, 214), grid="y")
    rows = np.array([0.0] + [point.rows for point in facts.curve])
    held = np.array([0.0] + [point.importance for point in facts.curve])
    panel.fill_between(rows, held, color=colour("pruned"), alpha=0.12, linewidth=0)
    panel.plot(rows, held, color=colour("pruned"), linewidth=2.2)
    panel.set(xlim=(0, 1), ylim=(0, 1.04))
    ticks = [0, 0.25, 0.5, 0.75, 1]
    panel.set_xticks(ticks, ["0 %", "25 %", "50 %", "75 %", "100 %"])
    panel.set_yticks(ticks, ["0 %", "25 %", "50 %", "75 %", "100 %"])
    _tuck(panel)
    x, y = facts.rows_kept, facts.importance_kept
    panel.plot([x, x], [0, y], color=colour("ink"), linewidth=1, linestyle=(0, (4, 3)))
    panel.scatter([x], [y], s=52, color=colour("ink"), zorder=4, clip_on=False, linewidths=0)
    # Below the curve, on the side of the line where there is more room.
    side, ha = (x + 0.025, "left") if x <= 0.55 else (x - 0.025, "right")
    for height, words, size in (
        (0.30, percent(y), 22),
        (0.175, "of the importance", FONT_SIZE),
        (0.095, f"in {percent(x)} of dimensions", FONT_SIZE),
    ):
        panel.text(side, height, words, ha=ha, va="center", fontsize=size, color=colour("ink"))
    canvas.text(0, 12, "importance held", color=colour("muted"))
    canvas.text(
        HALF - 24, 282, "dimensions, the most important first", ha="right", color=colour("muted")
    )
    return canvas.svg(f"Cumulative importance. {importance_sentence(report)}")


def _tuck(panel: Any) -> None:
    """Keeps the outermost labels of the horizontal axis within its ends."""
    labels = panel.get_xticklabels()
    labels[0].set_ha("left")
    labels[-1].set_ha("right")
