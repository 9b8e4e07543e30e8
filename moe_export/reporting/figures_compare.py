"""Picture of a comparison: memory, accuracy and speed of every variant, aligned."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from moe_export.artifacts.comparison import Column, Comparison
from moe_export.reporting.figures import HALF, WIDE, Canvas, bare
from moe_export.reporting.figures_bars import BAR, CHARACTER
from moe_export.reporting.palette import colour, variant_colour
from moe_export.reporting.units import figures, percent, size


class _Panel(NamedTuple):
    """Panel of the picture: its title, the figure of a column, and the figure in words."""

    title: str
    value: Callable[[Column], float | None]
    show: Callable[[float | None], str]


_PANELS = (
    _Panel("weights", lambda column: column.weights_bytes, size),
    _Panel("mean exact match", lambda column: column.mean_exact_match, percent),
    _Panel("decode, tokens per second", lambda column: column.decode_tokens_per_s, figures),
)

PITCH = BAR + 9


def comparison_bars(comparison: Comparison, *, wide: bool = False) -> str:
    """Draws three panels with a bar per variant, side by side or stacked for a phone."""
    columns = comparison.columns
    names = [f"{column.run}, {column.variant}" for column in columns]
    width = WIDE if wide else HALF
    margin = 14 + CHARACTER * min(max(map(len, names)), 30)
    height = PITCH * len(columns)
    block = height + 44
    canvas = Canvas("comparison", width, block if wide else block * len(_PANELS))
    share = (width - margin) / (len(_PANELS) if wide else 1)
    for number, (title, value_of, show) in enumerate(_PANELS):
        left, top = (margin + number * share, 30) if wide else (margin, 30 + number * block)
        canvas.text(left, top - 16, title, color=colour("muted"))
        if not wide or number == 0:
            for place, name in enumerate(names):
                words = name if len(name) <= 30 else "…" + name[-29:]
                canvas.text(margin - 10, top + PITCH * (place + 0.5), words, ha="right")
        panel = bare(canvas.axes(left, top, share - 84, height), grid="y")
        panel.grid(visible=False)
        panel.spines["left"].set_visible(True)
        values = [value_of(column) or 0 for column in columns]
        panel.set(xlim=(0, max(values) or 1), ylim=(len(columns), 0), xticks=[], yticks=[])
        for place, (column, value) in enumerate(zip(columns, values, strict=True)):
            ink = colour(variant_colour(column.variant))
            panel.barh(place + 0.5, value, height=BAR / PITCH, color=ink, linewidth=0)
            at = left + (share - 84) * value / (max(values) or 1) + 7
            canvas.text(at, top + PITCH * (place + 0.5), show(value_of(column)))
    spoken = "; ".join(
        f"{name}: "
        + ", ".join(f"{title} {show(value_of(column))}" for title, value_of, show in _PANELS)
        for name, column in zip(names, columns, strict=True)
    )
    return canvas.svg(f"Comparison. {spoken}.", "wide" if wide else "narrow")
