"""Canvas measured in pixels, and its SVG as a part of a page.

Text stays text, in the page's font. Colours become CSS variables of the page. The SVG is the same
at any time and on any machine.
"""

from __future__ import annotations

import io
import re
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moe_export.reporting.palette import colour, variables

WIDE, HALF = 1000, 480
"""Widths of a picture in pixels: that of the page, and half of it, which also suits a phone."""

FONT_SIZE = 12

_POINTS_PER_INCH = 72  # the SVG backend's unit, so that one of its units is a pixel here
_STYLE = {
    "axes.edgecolor": colour("rule"),
    "axes.labelcolor": colour("muted"),
    "axes.labelsize": FONT_SIZE,
    "axes.linewidth": 1,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "font.size": FONT_SIZE,
    "grid.color": colour("rule"),
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "text.color": colour("ink"),
    "text.parse_math": False,
    "xtick.color": colour("muted"),
    "xtick.major.pad": 6,
    "xtick.major.size": 0,
    "ytick.color": colour("muted"),
    "ytick.major.pad": 7,
    "ytick.major.size": 0,
}


class Canvas:
    """Picture of a fixed size.

    Args:
        name: name of the picture, unique on a page; ids within the SVG are made from it.
        width: width in pixels.
        height: height in pixels.
    """

    def __init__(self, name: str, width: float, height: float) -> None:
        self.name = name
        self.width, self.height = width, height
        self.figure = Figure(
            figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), dpi=_POINTS_PER_INCH
        )
        FigureCanvasSVG(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Adds a panel at a place in pixels from the upper left corner."""
        bottom = 1 - (top + height) / self.height
        place = (left / self.width, bottom, width / self.width, height / self.height)
        with rc_context(_STYLE):
            return self.figure.add_axes(place)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        """Adds words at a place in pixels, by default to the right of it and vertically centred."""
        style = {"ha": "left", "va": "center", "fontsize": FONT_SIZE, **style}
        style.setdefault("color", colour("ink"))
        self.figure.text(left / self.width, 1 - top / self.height, words, **style)

    def swatch(self, left: float, top: float, name: str, words: str) -> None:
        """Adds a square of a colour with words beside it."""
        size = 10
        panel = self.axes(left, top - size / 2, size, size)
        panel.axis("off")
        panel.add_patch(_rectangle(name))
        self.text(left + size + 5, top, words, color=colour("muted"))

    def svg(self, alternative: str, kind: str = "") -> str:
        """Renders the picture as an inline `<svg>`.

        Args:
            alternative: description for readers who do not see the picture.
            kind: additional class of the element.
        """
        file = io.StringIO()
        settings = _STYLE | {"svg.hashsalt": f"{self.name} {self.width}"}
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with rc_context(settings):
            self.figure.savefig(file, format="svg", transparent=True, metadata=nothing)
        return _inline(file.getvalue(), self, alternative, kind)


def bare(panel: Any, *, grid: str) -> Any:
    """Removes all lines of a panel except the grid along one axis, and returns the panel."""
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.grid(axis=grid)
    return panel


def _rectangle(name: str) -> Any:
    return Rectangle((0, 0), 1, 1, facecolor=colour(name), linewidth=0)


def _inline(svg: str, canvas: Canvas, alternative: str, kind: str) -> str:
    body = svg[svg.index("<svg") :]
    # The backend's style sheet would apply to the whole page.
    body = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font(?:-family)?: ?[^;\"]*?(?:'[^']*'|sans-serif)[^;\"]*", _font, body)
    names = {light: name for name, (light, _) in variables().items()}
    body = re.sub(r"#[0-9a-f]{6}\b", lambda m: _variable(m[0], names), body)
    label = alternative.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    opening = (
        f'<svg class="{f"picture {kind}".strip()}" role="img" aria-label="{label}" '
        f'viewBox="0 0 {canvas.width:g} {canvas.height:g}">'
    )
    return re.sub(r"<svg[^>]*>", lambda _: opening, body, count=1).strip()


def _font(match: re.Match[str]) -> str:
    """Keeps the font's size and weight, without its family, which is the page's."""
    font_size = re.search(r"([\d.]+)px", match[0])
    weight = "; font-weight: 600" if re.search(r"\b(?:600|700|bold)\b", match[0]) else ""
    return (f"font-size: {font_size[1]}px" if font_size else "font-family: inherit") + weight


def _variable(light: str, names: dict[str, str]) -> str:
    return f"var(--{names[light]})" if light in names else light
