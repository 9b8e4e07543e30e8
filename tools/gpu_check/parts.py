"""The parts of the check, and what each takes."""

from __future__ import annotations

PARTS = {
    "conformance": ("library", "conformance", 2),
    "layers": ("kernels", "layers", 4),
    "model": ("kernels", "model", 1),
    "onnxruntime": ("runtime", "onnxruntime_part", 2),
    "demo": ("runtime", "demo", 4),
}
"""Name to module, function and guess of minutes; a function gives rows of a table, each with `held`
where something was checked."""

NEEDS = {
    "library": ("torch",),
    "kernels": ("torch", "triton"),
    "runtime": ("onnxruntime", "torch"),
}


def too_late(part: str, minutes_left: float) -> str | None:
    """Why a part is not begun with so much time left; None if it is.

    >>> too_late("demo", 1.5)
    'it takes about 4 min, and 1.5 are left'
    """
    minutes = PARTS[part][2]
    if minutes <= minutes_left:
        return None
    return f"it takes about {minutes} min, and {minutes_left:.1f} are left"
