"""Scores from gradients: the change of a sequence's loss when a dimension is removed.

Legend: N routed pairs of a token and one expert, S sequences, D hidden, W width of the expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moe_export.scores.base import DataScore, ExpertBatch

if TYPE_CHECKING:
    from torch import Tensor

    from moe_export.passes.loss import Loss
    from moe_export.torch_model.recording import Quantity


def mask_gradient(batch: ExpertBatch, loss: Loss) -> Tensor:
    """Gradient of each sequence's loss with respect to a mask on each dimension.

    With a mask m at 1 that multiplies h:
        d loss_s / d m[j] = sum over tokens t of s of h[t, j] * d loss_s / d h[t, j]
    which equals both <down[:, j], d loss_s / d down[:, j]> and <up[j], d loss_s / d up[j]>, because
    h is linear in up and the output is linear in down.

    Returns:
        [S, W] float64, nats.
    """
    product_NW = batch.values["h"].double() * batch.gradients[loss]["h"].double()
    zeros_SW = product_NW.new_zeros(batch.num_sequences, product_NW.shape[1])
    return zeros_SW.index_add_(0, batch.sequence_N, product_NW)


def fisher(batch: ExpertBatch) -> Tensor:
    """Diagonal empirical Fisher information of a mask on each dimension:

        mean over sequences s of (d loss_s / d m[j]) ** 2

    where loss_s is the mean cross-entropy of the sequence's tokens. The square is taken after the
    sum over a sequence's tokens.
    """
    return mask_gradient(batch, "cross_entropy").square().sum(0)


def fisher_margin(batch: ExpertBatch) -> Tensor:
    """Score `fisher` with the mean margin loss of the sequence's tokens:

        mean over sequences s of (d margin_s / d m[j]) ** 2

    so that the gradient of every token counts 1 / (1 - p[gold]) times as much. Cross-entropy
    gradients vanish for tokens that a model has mastered, and with them the importance of the
    dimensions that do so.
    """
    return mask_gradient(batch, "margin").square().sum(0)


def fisher_weighted(batch: ExpertBatch) -> Tensor:
    """As `fisher`, with every sequence weighted by its tokens:

        mean over targets t of (d loss_s / d m[j]) ** 2, with s the sequence of t

    where targets are the tokens that have a loss and loss_s is the mean cross-entropy of those of
    the sequence. With S the gradient of their sum, a sequence of n targets adds S ** 2 / n, where
    `fisher` adds (S / n) ** 2, by which long sequences count too little: if the gradients of n
    tokens are independent, the square of their mean falls as 1 / n.
    """
    return _squares_by_targets(batch, "cross_entropy")


def fisher_margin_weighted(batch: ExpertBatch) -> Tensor:
    """As `fisher_weighted`, with the margin loss of `fisher_margin`:

    mean over targets t of (d margin_s / d m[j]) ** 2, with s the sequence of t
    """
    return _squares_by_targets(batch, "margin")


def fisher_sampled(batch: ExpertBatch) -> Tensor:
    """As `fisher_weighted`, with tokens drawn from the model in place of those of the data:

        mean over targets t of (d loss_s / d m[j]) ** 2, with s the sequence of t

    where loss_s is the mean cross-entropy with one token drawn at each target from the model's
    distribution there, by a fixed seed. Its expectation is the true Fisher information, half of
    which is the second-order term of the KL from the model to one with other masks; the empirical
    one, with the tokens of the data, is equal to it only if the model is right.
    """
    return _squares_by_targets(batch, "sampled")


def _squares_by_targets(batch: ExpertBatch, loss: Loss) -> Tensor:
    """Sum over sequences of targets times squared gradient."""
    return (batch.targets_S[:, None] * mask_gradient(batch, loss).square()).sum(0)


def fisher_per_token(batch: ExpertBatch) -> Tensor:
    """Diagonal empirical Fisher information of a mask on each dimension at each token:

        mean over targets of (h[t, j] * d total_s / d h[t, j]) ** 2, summed over tokens t

    where total_s is the summed cross-entropy of the targets of the sequence s of t. The square is
    taken before the sum over a sequence's tokens, so that effects of opposite sign do not cancel.
    """
    product_NW = batch.values["h"].double() * batch.gradients["cross_entropy"]["h"].double()
    return (batch.targets_S[batch.sequence_N, None] * product_NW).square().sum(0)


def absgrad(batch: ExpertBatch) -> Tensor:
    """Mean absolute gradient of the weights of each dimension:

        mean over sequences s of (sum over i of |d loss_s / d gate[j, i]|
            + |d loss_s / d up[j, i]| + |d loss_s / d down[i, j]|) / (3 D)

    where loss_s is the mean cross-entropy of the sequence's tokens. The absolute value is taken
    after the sum over a sequence's tokens.
    """
    x, h = batch.values["x"].float(), batch.values["h"].float()
    gradients = {name: g.float() for name, g in batch.gradients["cross_entropy"].items()}
    total_W = h.new_zeros(h.shape[1]).double()
    counts = batch.sequence_N.bincount(minlength=batch.num_sequences).tolist()
    start = 0
    for count in counts:
        part = slice(start, start + count)
        start += count
        if count:
            gate_WD = gradients["gate"][part].T @ x[part]
            up_WD = gradients["up"][part].T @ x[part]
            down_WD = h[part].T @ gradients["output"][part]
            total_W += (gate_WD.abs() + up_WD.abs() + down_WD.abs()).double().sum(1)
    return total_W / (3 * x.shape[1])


def rounding_margin(batch: ExpertBatch) -> Tensor:
    """Cost of rounding the weights of each dimension with a relative squared error of 1:

        mean over sequences s of (|d margin_s / d gate[j]| ** 2 * |gate[j]| ** 2
            + |d margin_s / d up[j]| ** 2 * |up[j]| ** 2
            + |d margin_s / d down[:, j]| ** 2 * |down[:, j]| ** 2) / D

    which is the expected squared change of the margin loss when independent noise of the size of
    the weights is added to them. It has the unit of `fisher_margin`, so that dropping a dimension
    and quantizing it can be compared.
    """
    return _rounding(batch, batch.gradients["margin"])


def rounding_margin_weighted(batch: ExpertBatch) -> Tensor:
    """As `rounding_margin`, with every sequence weighted by its tokens:

        mean over targets t of (|d margin_s / d gate[j]| ** 2 * |gate[j]| ** 2
            + |d margin_s / d up[j]| ** 2 * |up[j]| ** 2
            + |d margin_s / d down[:, j]| ** 2 * |down[:, j]| ** 2) / D, with s the sequence of t

    It has the unit of `fisher_margin_weighted`.
    """
    root_N1 = batch.targets_S[batch.sequence_N, None].sqrt()
    gradients = {name: g * root_N1.to(g.dtype) for name, g in batch.gradients["margin"].items()}
    return _rounding(batch, gradients)


def _rounding(batch: ExpertBatch, gradients: Mapping[Quantity, Tensor]) -> Tensor:
    """Sum over sequences of squared gradients of weights times squared weights, over D."""
    weights = batch.weights
    same_NN = batch.sequence_N[:, None] == batch.sequence_N[None, :]
    x_ND, h_NW = batch.values["x"], batch.values["h"]
    # The squared length of a sum over tokens is the sum of the products of every two of them.
    input_NN = (x_ND @ x_ND.T) * same_NN
    output_NN = (gradients["output"] @ gradients["output"].T) * same_NN
    total_W = h_NW.new_zeros(h_NW.shape[1]).double()
    for gram_NN, value_NW, weight_WD in (
        (input_NN, gradients["gate"], weights.gate_WD),
        (input_NN, gradients["up"], weights.up_WD),
        (output_NN, h_NW, weights.down_DW.T),
    ):
        length_W = (value_NW * (gram_NN @ value_NW)).double().sum(0)
        total_W += length_W.clamp(min=0) * weight_WD.double().square().sum(1)
    return total_W / x_ND.shape[1]


SCORES = (
    DataScore(
        "fisher_margin",
        unit="nats squared",
        source="this project; the Fisher information of arXiv:2606.05538 with another loss",
        measure=fisher_margin,
        mean_over="sequences",
        values=("h",),
        loss="margin",
        gradients=("h",),
    ),
    DataScore(
        "fisher",
        unit="nats squared",
        source="arXiv:2606.05538, as its text says; masks as in arXiv:2204.09656",
        measure=fisher,
        mean_over="sequences",
        values=("h",),
        loss="cross_entropy",
        gradients=("h",),
    ),
    DataScore(
        "fisher_margin_weighted",
        unit="nats squared",
        source="this project; `fisher_margin` with the normalization by tokens",
        measure=fisher_margin_weighted,
        mean_over="targets",
        values=("h",),
        loss="margin",
        gradients=("h",),
    ),
    DataScore(
        "fisher_weighted",
        unit="nats squared",
        source="this project; `fisher` with the normalization by tokens",
        measure=fisher_weighted,
        mean_over="targets",
        values=("h",),
        loss="cross_entropy",
        gradients=("h",),
    ),
    DataScore(
        "fisher_sampled",
        unit="nats squared",
        source="the true Fisher information, arXiv:1905.12558; masks as in arXiv:2204.09656",
        measure=fisher_sampled,
        mean_over="targets",
        values=("h",),
        loss="sampled",
        gradients=("h",),
    ),
    DataScore(
        "fisher_per_token",
        unit="nats squared",
        source="this project; the product of HEAPr, arXiv:2509.22299, within the mean",
        measure=fisher_per_token,
        mean_over="targets",
        values=("h",),
        loss="cross_entropy",
        gradients=("h",),
    ),
    DataScore(
        "rounding_margin",
        unit="nats squared",
        source="this project; diagonal Fisher information of weights, arXiv:2306.07629",
        measure=rounding_margin,
        mean_over="sequences",
        values=("x", "h"),
        loss="margin",
        gradients=("gate", "up", "output"),
    ),
    DataScore(
        "rounding_margin_weighted",
        unit="nats squared",
        source="this project; `rounding_margin` with the normalization by tokens",
        measure=rounding_margin_weighted,
        mean_over="targets",
        values=("x", "h"),
        loss="margin",
        gradients=("gate", "up", "output"),
    ),
    DataScore(
        "absgrad",
        unit="nats per unit of weight",
        source="arXiv:2606.05538, as its released code computes it",
        measure=absgrad,
        mean_over="sequences",
        values=("x", "h"),
        loss="cross_entropy",
        gradients=("gate", "up", "output"),
    ),
)
