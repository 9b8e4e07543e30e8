"""Scores from activations alone: baselines.

Legend: N routed pairs of a token and one expert, D hidden, W width of the expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_export.scores.base import DataScore, ExpertBatch

if TYPE_CHECKING:
    from torch import Tensor


def activation(batch: ExpertBatch) -> Tensor:
    """Mean absolute activation:

        sum over routed tokens t of |h[t, j]|, divided by the tokens of the whole set

    so that a rarely chosen expert counts less.
    """
    return batch.values["h"].double().abs().sum(0)


def router_weighted_activation(batch: ExpertBatch) -> Tensor:
    """Mean squared length of a dimension's contribution to the layer's output:

        sum over routed tokens t of (p[t] * h[t, j]) ** 2 * |down[:, j]| ** 2,
        divided by the tokens of the whole set

    with p the routing weight.
    """
    weighted_NW = batch.values["h"].double() * batch.routing_N.double()[:, None]
    return weighted_NW.square().sum(0) * batch.weights.down_DW.double().square().sum(0)


def router_frequency(batch: ExpertBatch) -> Tensor:
    """Number of tokens that the router sends to the expert; the same for all its dimensions."""
    h_NW = batch.values["h"]
    return h_NW.new_full((h_NW.shape[1],), len(h_NW)).double()


def reap(batch: ExpertBatch) -> Tensor:
    """Router-weighted length of the expert's output, the same for all its dimensions:

    mean over routed tokens t of p[t] * |output[t]|
    """
    length_N = batch.values["output"].double().norm(dim=1)
    total = (batch.routing_N.double() * length_N).sum()
    return total.expand(batch.weights.up_WD.shape[0])


SCORES = (
    DataScore(
        "activation",
        unit="activation",
        source="the usual baseline",
        measure=activation,
        mean_over="tokens",
        values=("h",),
    ),
    DataScore(
        "router_weighted_activation",
        unit="output squared",
        source="Wanda, arXiv:2306.11695, for a dimension instead of a weight",
        measure=router_weighted_activation,
        mean_over="tokens",
        values=("h",),
    ),
    DataScore(
        "router_frequency",
        unit="tokens",
        source="the usual baseline for whole experts",
        measure=router_frequency,
        mean_over=None,
        values=("h",),
        known_if_unreached=True,
    ),
    DataScore(
        "reap",
        unit="output",
        source="REAP, arXiv:2510.13999, for whole experts",
        measure=reap,
        mean_over="routed_tokens",
        values=("output",),
    ),
)
