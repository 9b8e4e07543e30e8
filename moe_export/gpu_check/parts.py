"""The parts of the check, with the time and the packages that each needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        module: Full name of a module.
        function: Function of it that returns rows of a table, with `held` if it checked anything.
        minutes: Estimated time.
        needs: Packages, `KERNELS` and `CHECKOUT`.
        ahead: Function of the module that prepares the part on the host while other parts run; both
            functions then get a folder and the numbers of layers.
        by_default: True if the part runs without being asked for.
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
"""Name to part, the most valuable first."""


def too_late(part: str, minutes_left: float) -> str | None:
    """Reason not to begin a part with so little time left; None to begin it.

    >>> too_late("models", 1.5)
    'it takes about 3 min, and 1.5 are left'
    """
    minutes = PARTS[part].minutes
    if minutes <= minutes_left:
        return None
    return f"it takes about {minutes:g} min, and {minutes_left:.1f} are left"
