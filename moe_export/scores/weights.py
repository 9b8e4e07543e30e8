"""Scores that need no data: baselines.

Legend: D hidden, W width of the expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moe_export.scores.base import ExpertWeights, WeightScore

if TYPE_CHECKING:
    from torch import Tensor

RANDOM_SEED = 20260604
"""Seed of the `random` score; any number would do."""


def magnitude(weights: ExpertWeights) -> Tensor:
    """Squared length of the dimension's weights:

    |gate[j]| ** 2 + |up[j]| ** 2 + |down[:, j]| ** 2
    """
    return (
        weights.gate_WD.double().square().sum(1)
        + weights.up_WD.double().square().sum(1)
        + weights.down_DW.double().square().sum(0)
    )


def random(weights: ExpertWeights) -> Tensor:
    """Uniform on [0, 1), drawn from a fixed seed, the layer and the expert."""
    generator = np.random.default_rng((RANDOM_SEED, weights.layer, weights.expert))
    values_W = generator.random(weights.up_WD.shape[0])
    return weights.up_WD.new_tensor(values_W.tolist()).double()


SCORES = (
    WeightScore("magnitude", unit="weight squared", source="the usual baseline", measure=magnitude),
    WeightScore("random", unit="none", source="the control", measure=random),
)
