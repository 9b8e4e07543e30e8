"""Scores computed from two others.

Legend: R rows of a layer, N routed pairs of a token and one expert, W width of the expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_export.scores.base import DataScore, DerivedScore, ExpertBatch
from moe_export.scores.gradients import SCORES as GRADIENT_SCORES

if TYPE_CHECKING:
    from torch import Tensor

Layers = Sequence[NDArray[np.float64]]
"""Values of a score, [R] per layer."""


def mixed(first: Layers, second: Layers) -> list[NDArray[np.float64]]:
    """Mean of the shares that a dimension has in two scores:

        (first[j] / sum over all dimensions i of first[i]
            + second[j] / sum over all dimensions i of second[i]) / 2

    Sums are over the whole model, without experts that no token reached.
    """
    pairs = zip(_shares(first), _shares(second), strict=True)
    return [(first_R + second_R) / 2 for first_R, second_R in pairs]


def _shares(layers: Layers) -> list[NDArray[np.float64]]:
    total = sum(float(layer_R[np.isfinite(layer_R)].sum()) for layer_R in layers)
    return [layer_R / (total or 1.0) for layer_R in layers]


def activation_square(batch: ExpertBatch) -> Tensor:
    """Mean over routed tokens t of h[t, j] ** 2."""
    return batch.values["h"].double().square().sum(0)


def slope_square(batch: ExpertBatch) -> Tensor:
    """Mean over routed tokens t of (d total_s / d h[t, j]) ** 2, with total_s the summed
    cross-entropy of the targets of the sequence s of t.
    """
    slope_NW = batch.gradients["cross_entropy"]["h"].double()
    return (batch.targets_S[batch.sequence_N, None] * slope_NW).square().sum(0)


def heapr(activation: Layers, slope: Layers) -> list[NDArray[np.float64]]:
    """Second-order change of the loss in the space of the expert's output:

        mean over routed tokens t of h[t, j] ** 2
            * down[:, j] . (mean over routed tokens t of g[t] g[t]^T) down[:, j]

    with g the gradient of the summed cross-entropy of a sequence's targets at the output of `down`.
    The second factor is the mean of (g[t] . down[:, j]) ** 2, which is that of
    (d total / d h[t, j]) ** 2, so that no matrix of the hidden size is needed. Where
    `fisher_per_token` averages the product of the two squares, here their averages are multiplied.
    """
    return [first_R * second_R for first_R, second_R in zip(activation, slope, strict=True)]


def _named(name: str) -> DataScore:
    return next(score for score in GRADIENT_SCORES if score.name == name)


SCORES = (
    DerivedScore(
        "fisher_margin_mixed",
        unit="share",
        source="this project; `fisher_margin` and `fisher_margin_weighted`",
        parts=(_named("fisher_margin"), _named("fisher_margin_weighted")),
        combine=mixed,
    ),
    DerivedScore(
        "fisher_mixed",
        unit="share",
        source="this project; `fisher_margin_weighted` and `fisher_weighted`",
        parts=(_named("fisher_margin_weighted"), _named("fisher_weighted")),
        combine=mixed,
    ),
    DerivedScore(
        "heapr",
        unit="nats squared",
        source="HEAPr, arXiv:2509.22299, as its released code computes it",
        parts=(
            DataScore(
                "heapr_activation",
                unit="activation squared",
                source="HEAPr, arXiv:2509.22299",
                measure=activation_square,
                mean_over="routed_tokens",
                values=("h",),
            ),
            DataScore(
                "heapr_slope",
                unit="nats squared per unit of activation squared",
                source="HEAPr, arXiv:2509.22299",
                measure=slope_square,
                mean_over="routed_tokens",
                values=("h",),
                loss="cross_entropy",
                gradients=("h",),
            ),
        ),
        combine=heapr,
    ),
)
