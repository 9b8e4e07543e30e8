"""The picture of a sweep: accuracy against bytes, and against speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_export.reporting.figures import HALF, WIDE, Canvas, bare
from moe_export.reporting.figures_bars import CHARACTER
from moe_export.reporting.palette import colour
from moe_export.reporting.sweep_table import front
from moe_export.reporting.units import figures, percent, size

INK = {"float": "pruned", "int8": "both", "int4": "quantized", "auto": "further"}
"""Format of the experts to the name of its colour."""

WORDS = {"auto": "the plan's choice"}


def pareto(sweep: Mapping[str, Any], *, wide: bool = False) -> str:
    """Two panels, beside each other or below each other; a line joins the points that no other
    beats in both bytes and accuracy.
    """
    points = [p for p in sweep["points"] if p["mean_exact_match"] is not None]
    width, height = (WIDE, 380) if wide else (HALF, 740)
    canvas = Canvas("sweep", width, height)
    left = 0.0
    for name in [n for n in INK if any(p["experts"] == n for p in points)]:
        label = WORDS.get(name, name)
        canvas.swatch(left, 14, INK[name], label)
        left += 31 + CHARACTER * len(label)
    canvas.swatch(left, 14, "baseline", "unpruned")
    share = (width - 60) / 2 - 20 if wide else width - 70
    best = front(points)
    for number, (key, title) in enumerate(
        (("weights_bytes", "weights"), ("decode_tokens_per_s", "decode, tokens per second"))
    ):
        place = (52 + number * (share + 60), 60) if wide else (52, 60 + number * 350)
        panel = bare(canvas.axes(*place, share, 270), grid="y")
        canvas.text(place[0], place[1] - 16, f"exact match against {title}", color=colour("muted"))
        if key == "weights_bytes":
            panel.plot(
                [p[key] for p in best],
                [p["mean_exact_match"] for p in best],
                color=colour("rule"),
                linewidth=2,
                zorder=1,
            )
        for point in points:
            if point[key] is not None:
                panel.scatter(
                    point[key],
                    point["mean_exact_match"],
                    s=70 if point["experts"] == "auto" else 34,
                    color=colour(INK[point["experts"]]),
                    marker="D" if point["experts"] == "auto" else "o",
                    linewidths=0,
                    zorder=3,
                    clip_on=False,
                )
        baseline = sweep["baseline"]
        if baseline[key] is not None:
            panel.scatter(
                baseline[key],
                baseline["mean_exact_match"],
                s=34,
                color=colour("baseline"),
                linewidths=0,
                zorder=2,
                clip_on=False,
            )
        values = [p[key] for p in (*points, baseline) if p[key] is not None] or [1]
        low = 0 if key == "weights_bytes" else min(values) * 0.9
        panel.set(xlim=(low, max(values) * 1.05), ylim=(0, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1])
        panel.set_yticklabels([percent(tick) for tick in (0, 0.25, 0.5, 0.75, 1)])
        show = size if key == "weights_bytes" else figures
        ticks = [low + (max(values) - low) * part / 4 for part in range(5)]
        panel.set_xticks(ticks, [show(tick) for tick in ticks])
    spoken = "; ".join(
        f"{p['name']}: {size(p['weights_bytes'])}, {percent(p['mean_exact_match'])}" for p in best
    )
    return canvas.svg(f"Accuracy against bytes. Best: {spoken}.", "wide" if wide else "narrow")
