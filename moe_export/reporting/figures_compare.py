"""The picture of a comparison: memory, accuracy and speed of every variant, aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from moe_export.reporting.figures import HALF, WIDE, Canvas, bare
from moe_export.reporting.figures_bars import BAR, CHARACTER
from moe_export.reporting.palette import colour, variant_colour
from moe_export.reporting.units import figures, percent, size

_PANELS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("weights", "weights_bytes", size),
    ("mean exact match", "mean_exact_match", percent),
    ("decode, tokens per second", "decode_tokens_per_s", figures),
)

PITCH = BAR + 9


def comparison_bars(comparison: Mapping[str, Any], *, wide: bool = False) -> str:
    """Three panels with a bar per variant: beside each other, or below each other for a phone."""
    columns = comparison["columns"]
    names = [f"{column['run']}, {column['variant']}" for column in columns]
    width = WIDE if wide else HALF
    margin = 14 + CHARACTER * min(max(map(len, names)), 30)
    height = PITCH * len(columns)
    block = height + 44
    canvas = Canvas("comparison", width, block if wide else block * len(_PANELS))
    share = (width - margin) / (len(_PANELS) if wide else 1)
    for number, (title, key, show) in enumerate(_PANELS):
        left, top = (margin + number * share, 30) if wide else (margin, 30 + number * block)
        canvas.text(left, top - 16, title, color=colour("muted"))
        if not wide or number == 0:
            for place, name in enumerate(names):
                words = name if len(name) <= 30 else "…" + name[-29:]
                canvas.text(margin - 10, top + PITCH * (place + 0.5), words, ha="right")
        panel = bare(canvas.axes(left, top, share - 84, height), grid="y")
        panel.grid(visible=False)
        panel.spines["left"].set_visible(True)
        values = [column[key] or 0 for column in columns]
        panel.set(xlim=(0, max(values) or 1), ylim=(len(columns), 0), xticks=[], yticks=[])
        for place, (column, value) in enumerate(zip(columns, values, strict=True)):
            ink = colour(variant_colour(column["variant"]))
            panel.barh(place + 0.5, value, height=BAR / PITCH, color=ink, linewidth=0)
            at = left + (share - 84) * value / (max(values) or 1) + 7
            canvas.text(at, top + PITCH * (place + 0.5), show(column[key]))
    spoken = "; ".join(
        f"{name}: " + ", ".join(f"{title} {show(column[key])}" for title, key, show in _PANELS)
        for name, column in zip(names, columns, strict=True)
    )
    return canvas.svg(f"Comparison. {spoken}.", "wide" if wide else "narrow")
