"""Course of the learning rate."""

from __future__ import annotations

import math

from moe_export.recipe import TuneSettings


def rate_at(step: int, steps: int, settings: TuneSettings) -> float:
    """Learning rate of a step, counted from 0.

    >>> from moe_export.recipe import Source
    >>> of = TuneSettings(method="full", sources=(Source(demo="sums"),), warmup=0.5)
    >>> [round(rate_at(step, 4, of) / of.learning_rate, 2) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    rising = round(settings.warmup * steps)
    if step < rising:
        return settings.learning_rate * (step + 1) / rising
    if settings.schedule == "constant":
        return settings.learning_rate
    part = (step - rising) / max(steps - rising, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * part))
