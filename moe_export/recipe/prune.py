"""The section that removes dimensions, and fits the weights that are kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from moe_export.recipe.base import Count, Factor, Section


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


class PruneSettings(Section):
    """Files beside the pruned checkpoint, and the fitting of the weights that are kept.

    Attributes:
        save_padded: `true` to also write the zero-padded twin, which stock transformers loads.
        refit_down: `true` to fit `down` of each expert by least squares to the output of the whole
            expert on the calibration tokens that reach it; a pruned shared expert on all tokens.
            Masking then no longer equals pruning. An expert with fewer tokens than twice its kept
            dimensions stays as it is, which the ledger lists.
        ridge: Strength that holds `down` where it was, over the mean square of its inputs.
        distill_router: `true` or a section to fit the routers, and nothing else, so that the pruned
            model's distributions come near those of the unpruned one. Some sequences are held out;
            routers that are no better on them are not taken, which the ledger and the report say.
        calibration_tokens: Most calibration tokens that either of the two uses.
    """

    save_padded: bool = False
    refit_down: bool = False
    ridge: Factor = 0.01
    distill_router: Annotated[DistillSettings | None, BeforeValidator(_on_or_off)] = None
    calibration_tokens: Count = 65536
