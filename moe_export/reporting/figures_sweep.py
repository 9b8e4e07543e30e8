"""The picture of a sweep: accuracy against bytes, and against speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moe_export.reporting.figures import HALF, WIDE, Canvas, bare
from moe_export.reporting.figures_bars import CHARACTER
from moe_export.reporting.palette import colour
from moe_export.reporting.sweep_front import front
from moe_export.reporting.units import figures, percent, size

INK = {
    "float": "pruned",
    "int8": "both",
    "int4": "quantized",
    "uint8": "shared",
    "uint4": "embeddings",
    "nf4": "scales",
    "auto": "further",
}
"""Format of the experts to the name of its colour."""

WORDS = {"auto": "the plan's choice"}


_PANELS = (
    ("weights_bytes", "mean_exact_match", "exact match against weights"),
    ("weights_bytes", "mean_kl_nats", "KL from the unpruned model, nats, against weights"),
    ("decode_tokens_per_s", "mean_exact_match", "exact match against decode, tokens per second"),
)

HEIGHT, GAP = 260, 66


def pareto(sweep: Mapping[str, Any], *, wide: bool = False) -> str:
    """Panels beside each other or below each other; a line joins the points that no other beats in
    both bytes and accuracy.
    """
    points = [p for p in sweep["points"] if p["mean_exact_match"] is not None]
    panels = [panel for panel in _PANELS if any(p[panel[0]] is not None for p in points)]
    across = len(panels) if wide else 1
    down = len(panels) // across
    width = WIDE if wide else HALF
    canvas = Canvas("sweep", width, 30 + down * (HEIGHT + GAP))
    left = 0.0
    for name in [n for n in INK if any(p["experts"] == n for p in points)]:
        label = WORDS.get(name, name)
        canvas.swatch(left, 14, INK[name], label)
        left += 31 + CHARACTER * len(label)
    canvas.swatch(left, 14, "baseline", "unpruned")
    share = width / across
    for number, (across_key, up_key, title) in enumerate(panels):
        x, y = (number * share, 60) if wide else (0, 60 + number * (HEIGHT + GAP))
        canvas.text(x, y - 16, title, color=colour("muted"))
        panel = bare(canvas.axes(x + 46, y, share - 84, HEIGHT), grid="y")
        _panel(panel, sweep, points, across_key, up_key)
    best = front(points)
    spoken = "; ".join(
        f"{p['name']}: {size(p['weights_bytes'])}, {percent(p['mean_exact_match'])}" for p in best
    )
    return canvas.svg(f"Accuracy against bytes. Best: {spoken}.", "wide" if wide else "narrow")


def _panel(panel: Any, sweep: Mapping[str, Any], points: list[Any], across: str, up: str) -> None:
    baseline = sweep["baseline"]
    if (across, up) == ("weights_bytes", "mean_exact_match"):
        best = front(points)
        panel.plot(
            [p[across] for p in best],
            [p[up] for p in best],
            color=colour("rule"),
            linewidth=2,
            zorder=1,
        )
    # On a logarithmic axis there is no place for a divergence of nothing.
    shown = [p for p in points if p[across] is not None and (p[up] or up != "mean_kl_nats")]
    for point in shown:
        own = point["experts"] == "auto"
        panel.scatter(
            point[across],
            point[up],
            s=60 if own else 34,
            color=colour(INK[point["experts"]]),
            marker="D" if own else "o",
            linewidths=0,
            zorder=3 if own else 2,
            clip_on=False,
        )
    if baseline[across] is not None and up == "mean_exact_match":
        ink = colour("baseline")
        panel.scatter(
            baseline[across], baseline[up], s=34, color=ink, linewidths=0, zorder=2, clip_on=False
        )
    most = max([p[across] for p in (*shown, baseline) if p[across] is not None] or [1])
    ticks = [most * part / 2 for part in range(3)]
    show = size if across == "weights_bytes" else figures
    panel.set(xlim=(0, most * 1.05))
    panel.set_xticks(ticks, [show(tick) for tick in ticks])
    if up == "mean_kl_nats":
        least = min([p[up] for p in shown] or [1])
        lowest, highest = int(np.floor(np.log10(least))), 1
        decades = [10.0**power for power in range(lowest, highest)]
        panel.set_yscale("log")
        panel.minorticks_off()
        panel.set(ylim=(decades[0], decades[-1]))
        panel.set_yticks(decades, [f"{decade:g}" for decade in decades])
    else:
        marks = (0, 0.25, 0.5, 0.75, 1)
        panel.set(ylim=(0, 1.02))
        panel.set_yticks(marks, [percent(mark) for mark in marks])
