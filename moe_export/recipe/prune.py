"""The section that removes dimensions, and fits the weights that are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from moe_export.recipe.base import Count, Factor, Fraction, Section


class RefitSettings(Section):
    """Fitting of `down` by least squares to the wanted outputs of each block.

    Attributes:
        ridge: Strength that holds `down` where it was, over the mean square of its inputs.
        mix: Share of the unpruned model's residual stream in the wanted outputs. 0 asks for what
            the unpruned block makes of the same input, 1 for what brings the pruned model's
            residual stream to that of the unpruned one.
    """

    ridge: Factor = 0.01
    mix: Fraction = 0.5


class BlockSettings(Section):
    """Training of gate, up, down and router of each block towards its wanted outputs.

    Attributes:
        steps: Steps of Adam; the rate falls linearly to zero.
        learning_rate: Movement of a weight in the first step, as a share of the root mean square of
            its matrix.
        tokens_per_step: Calibration tokens of a step, drawn by the weights of their sources.
    """

    steps: Count = 240
    learning_rate: Factor = 0.03
    tokens_per_step: Count = 384


class DistillSettings(Section):
    """Training of the routers towards the unpruned model's distributions.

    Attributes:
        steps: Steps of Adam; the rate falls linearly to zero.
        learning_rate: Movement of a router's weight in the first step, as a share of the root mean
            square of the router's weights. A smaller one does better where little was removed.
        temperature: Divisor of both models' logits.
        tokens_per_step: Most calibration tokens of a step.
    """

    steps: Count = 50
    learning_rate: Factor = 0.01
    temperature: Factor = 1.0
    tokens_per_step: Count = 4096


def _on_or_off(value: object) -> object:
    """A section of defaults for `true`, none for `false`."""
    return ({} if value else None) if isinstance(value, bool) else value


def _on(value: object) -> object:
    """A section of defaults for `true`; sections and `false` are returned as they are.

    Raises:
        PydanticCustomError: The value is a number, of which 0 would pass for `false`.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise PydanticCustomError("on_or_off", "Input should be true, false or a section")
    return {} if value is True else value


_ON = BeforeValidator(_on)

_RENAMED = {
    "refit_down": "prune.refit, which is on unless it is false",
    "ridge": "prune.refit.ridge",
}
"""Earlier keys of the section, and what to write instead."""


class PruneSettings(Section):
    """Files beside the pruned checkpoint, and the fitting of the weights that are kept.

    Masking no longer equals pruning where weights are fitted. Sequences of the calibration set are
    held out, and a fit that is no better on them is not taken, which the ledger and the report say.

    Attributes:
        save_padded: `true` to also write the zero-padded twin, which stock transformers loads.
        refit: `true`, a section or `false`; fits `down` of each expert, layer by layer. An expert
            that fewer tokens reach than twice its kept dimensions stays as it is.
        distill_blocks: `true`, a section or `false`; trains all kept dimensions and the router of
            each block after `refit`, and then fits `down` again. It holds the kept weights of a
            layer five times in float32; without `refit` it is off.
        distill_router: `true`, a section or `false`; trains the routers, and nothing else, so that
            the pruned model's distributions come near those of the unpruned one.
        calibration_tokens: Most calibration tokens that any of these uses.
    """

    save_padded: bool = False
    refit: Annotated[RefitSettings | Literal[False], _ON] = RefitSettings()
    distill_blocks: Annotated[BlockSettings | Literal[False], _ON] = BlockSettings()
    distill_router: Annotated[DistillSettings | None, BeforeValidator(_on_or_off)] = None
    calibration_tokens: Count = 65536

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, content: Any) -> Any:
        for old, new in _RENAMED.items():
            if isinstance(content, dict) and old in content:
                raise ValueError(f"{old} has another name now: {new}")
        return content

    @property
    def block_steps(self) -> BlockSettings | None:
        """Settings of block-wise distillation; None if it is off."""
        return (self.distill_blocks or None) if self.refit else None

    @property
    def fits(self) -> bool:
        """True if any weights are fitted."""
        return bool(self.refit) or self.distill_router is not None
