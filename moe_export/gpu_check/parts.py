"""The parts of the check, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        module: by its whole name.
        function: gives rows of a table, each with `held` where something was checked.
        minutes: that it takes; a guess.
        needs: packages, and `KERNELS`.
        by_default: whether it runs without being asked for.
        ahead: function of the module that prepares it on the host, from the beginning on while
            other parts run; both are given a folder and the options of the command line.
    """

    module: str
    function: str
    minutes: float
    needs: tuple[str, ...]
    ahead: str | None = None
    by_default: bool = True


KERNELS = "kernels"
"""Need of a part: the native library can run its kernels here."""

CHECKOUT = "checkout"
"""Need of a part: `DEMO_RECIPE` is there, which the wheel does not hold."""

DEMO_RECIPE = Path(__file__).parents[2] / "recipes" / "demo_50pct.yaml"

PARTS = {
    "conformance": Part("moe_export.gpu_check.library", "conformance", 0.75, ("torch", KERNELS)),
    "onnxruntime": Part("moe_export.gpu_check.runtime", "cases", 0.5, ("onnxruntime", KERNELS)),
    "layers": Part("moe_export.gpu_check.kernels", "layers", 2.25, ("torch", "triton")),
    "models": Part(
        "moe_export.gpu_check.whole_models", "models", 3, ("onnxruntime", KERNELS), ahead="build"
    ),
    "peers": Part("moe_export.gpu_check.peers", "peers", 1.5, ("onnxruntime", KERNELS)),
    "demo": Part(
        "moe_export.gpu_check.runtime", "demo", 1.5, ("onnxruntime", "torch", KERNELS, CHECKOUT)
    ),
    "shapes": Part(
        "moe_export.gpu_check.shapes", "shapes", 2.75, ("torch", "triton"), by_default=False
    ),
}
"""By name, the worthiest first."""


def too_late(part: str, minutes_left: float) -> str | None:
    """Why a part is not begun with so much time left; None if it is.

    >>> too_late("models", 1.5)
    'it takes about 3 min, and 1.5 are left'
    """
    minutes = PARTS[part].minutes
    if minutes <= minutes_left:
        return None
    return f"it takes about {minutes:g} min, and {minutes_left:.1f} are left"
