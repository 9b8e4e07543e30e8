"""AdamW over trained weights, and a step of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moe_export.recipe import TuneSettings
from moe_export.tuning.schedule import rate_at

BETAS = (0.9, 0.95)
COMPRESSED = ".compressed."
"""Part of the names of the vectors of compressed experts."""

LARGEST_NORM = 1.0
"""Norm of all gradients together above which they are scaled down."""


def adam_of(parameters: Mapping[str, nn.Parameter], settings: TuneSettings) -> torch.optim.AdamW:
    """AdamW; vectors have a rate of their own, and no decay towards zero.

    Args:
        parameters: Trained weights by name.
        settings: Settings of the section.
    """
    vectors = [p for name, p in parameters.items() if COMPRESSED in name]
    others = [p for name, p in parameters.items() if COMPRESSED not in name]
    groups: list[dict[str, Any]] = [{"params": others, "factor": 1.0}] if others else []
    if vectors:
        factor = settings.vectors.vector_rate
        groups.append({"params": vectors, "factor": factor, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=BETAS, weight_decay=settings.weight_decay)


def take_step(
    adam: torch.optim.AdamW,
    parameters: Sequence[nn.Parameter],
    number: int,
    steps: int,
    settings: TuneSettings,
) -> None:
    """Moves the weights by their gradients, which are removed.

    Args:
        adam: Result of `adam_of`.
        parameters: Its weights, in the order in which their gradients are added up.
        number: Number of the step, from 0.
        steps: Number of steps.
        settings: Settings of the section.
    """
    for parameter in parameters:
        if parameter.grad is None:  # an expert that no token reached
            parameter.grad = torch.zeros_like(parameter)
    nn.utils.clip_grad_norm_(parameters, LARGEST_NORM)
    for group in adam.param_groups:
        group["lr"] = group["factor"] * rate_at(number, steps, settings)
    adam.step()
    adam.zero_grad(set_to_none=True)
