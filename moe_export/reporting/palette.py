"""Colours of all pictures and pages, each with a light and a dark value.

Pictures are drawn in the light values, which are then replaced by CSS variables: one picture serves
both schemes. The hues differ in lightness too, and stay apart in print and for every common
kind of colour-blindness.
"""

from __future__ import annotations

LEVELS = 16
"""Number of steps of the sequential scale."""

COLOURS: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171b"),
    "raised": ("#f6f7f9", "#1c2026"),
    "ink": ("#1a1d21", "#e7eaee"),
    "muted": ("#5d6670", "#9aa5b1"),
    "rule": ("#dde1e6", "#343b44"),
    "pass": ("#0b6e4f", "#56c596"),
    "fail": ("#b3261e", "#ff8a80"),
    "on-low": ("#1b1e23", "#eef2f6"),
    "on-high": ("#fdfeff", "#0e1319"),
    "on-light": ("#1c1f24", "#1a1e24"),
    "baseline": ("#939ca6", "#76808c"),
    "pruned": ("#1d5fa6", "#62a8f5"),
    "quantized": ("#cf6412", "#f29a55"),
    "both": ("#0b8074", "#4fcbb9"),
    "further": ("#7d4f9e", "#c296e0"),
    "experts": ("#24508f", "#4d8ddb"),
    "shared": ("#8fb3de", "#a9cdf7"),
    "attention": ("#d07f14", "#e39a3b"),
    "embeddings": ("#f0cd8c", "#f4dba8"),
    "scales": ("#7a9e7e", "#9cc4a0"),
    "other": ("#a6aeb7", "#8a95a1"),
}

_LIGHT_STOPS = ("#e8f0f9", "#9dc3e8", "#3c82c6", "#10366a")
_DARK_STOPS = ("#1f2a38", "#22518c", "#4f97e3", "#d3e8ff")

_VARIANTS = {
    "baseline": "baseline",
    "pruned": "pruned",
    "quantized": "quantized",
}

CLASS_COLOURS: dict[str, tuple[str, ...]] = {
    "experts": ("experts",),
    "shared": ("shared_expert",),
    "attention": ("attention",),
    "embeddings": ("embeddings",),
    "scales": ("scales",),
    "other": ("router", "norms", "constants", "padding"),
}
"""Colour to the memory classes it stands for; `other` also stands for classes not listed here."""


def colour(name: str) -> str:
    """Returns the light value of a colour."""
    return COLOURS[name][0]


def variant_colour(variant: str) -> str:
    """Returns the name of a variant's colour, the same in every picture."""
    return _VARIANTS.get(variant, "further")


def class_colour(tensor_class: str) -> str:
    """Returns the name of the colour of a memory class."""
    for name, classes in CLASS_COLOURS.items():
        if tensor_class in classes:
            return name
    return "other"


def level(number: int) -> str:
    """Returns the light value of a step of the sequential scale, 0 to `LEVELS` - 1."""
    return _along(_LIGHT_STOPS, number)


def variables() -> dict[str, tuple[str, str]]:
    """Returns the light and dark value of every CSS variable."""
    steps = {f"level-{n}": (level(n), _along(_DARK_STOPS, n)) for n in range(LEVELS)}
    return COLOURS | steps


def _along(stops: tuple[str, ...], number: int) -> str:
    position = number / (LEVELS - 1) * (len(stops) - 1)
    left = min(int(position), len(stops) - 2)
    share = position - left
    mixed = [
        round(a + share * (b - a))
        for a, b in zip(_rgb(stops[left]), _rgb(stops[left + 1]), strict=True)
    ]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _rgb(colour_hex: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour_hex[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
