"""The facts of a format: how many bits its values take where, and who can use and run it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moe_export.errors import RecipeError
from moe_export.formats.grid import Grid

Use = Literal["experts", "dense", "embedding"]
"""Classes of tensors that a recipe gives a format to: matrices of experts; matrices of attention
and of layers without experts, with the lm_head; the embedding's table."""

Executor = Literal["rounding", "portable", "native", "packed", "cuda"]

EXECUTORS: dict[Executor, str] = {
    "rounding": "the native library's rounding",
    "portable": "the function of standard operators",
    "native": "the native library's kernels",
    "packed": "the packed layout of the native kernels",
    "cuda": "the CUDA kernels",
}
"""Code that has to know a format, and its name in messages."""

EVERYWHERE: frozenset[Executor] = frozenset(EXECUTORS)


@dataclass(frozen=True, kw_only=True)
class FormatFacts:
    """A format of stored weights.

    A format is known to an executor when `executors` names it. All others refuse it, so that a new
    format can be tried in Python before every kernel has it.

    Attributes:
        name: Word in recipes, nodes and files.
        float_bits: Bits of a value in a format of floats; None in one of codes.
        grid: Meaning of the codes; None in a format of floats.
        uses: Classes of tensors that a recipe may give it to.
        executors: Code that knows the format.
        panel_bits: Bits of a value in the panels of the packed layout; None without such panels.
        cuda_dtypes: Dtypes of x that the CUDA kernels are compiled for.
    """

    name: str
    float_bits: int | None = None
    grid: Grid | None = None
    uses: frozenset[Use] = frozenset({"experts"})
    executors: frozenset[Executor] = frozenset()
    panel_bits: int | None = None
    cuda_dtypes: tuple[str, ...] = ()

    @property
    def is_quantized(self) -> bool:
        """True if weights are codes with scales."""
        return self.grid is not None

    @property
    def has_zero_point(self) -> bool:
        """True if groups have a zero point beside their scale."""
        return self.grid is not None and self.grid.has_zero_point

    @property
    def storage_bits(self) -> int:
        """Bits of a value in checkpoints and in the portable layout, scales apart."""
        if self.grid is not None:
            return self.grid.storage_bits
        assert self.float_bits is not None
        return self.float_bits

    def require(self, executor: Executor) -> None:
        """Refuses the format for an executor that does not know it.

        Raises:
            RecipeError: the executor does not know the format.
        """
        if executor not in self.executors:
            raise RecipeError(self.refusal(executor))

    def refusal(self, executor: Executor) -> str:
        """Sentence that refuses the format for an executor."""
        return (
            f"format {self.name} is not known to {EXECUTORS[executor]}; choose another format for "
            "these weights"
        )
