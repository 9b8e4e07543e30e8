"""Widths and formats together that lose least within a budget of bytes.

The predicted loss is a sum over expert dimensions of an expected squared change of the model's
loss. A dropped dimension counts with the change from masking it. A kept one counts with the change
from noise on its weights, of the size of the format's error, times a measured rate (`exchange`).
Dropping and quantizing so have one unit, and a price per byte (a Lagrange multiplier) decides both:

1. At a given price, each expert keeps the dimensions whose importance is worth their bytes, and
   each layer takes the format of least loss and bytes (`choose`).
2. The price at which the budget is met is searched for by bisection (`_price_picks`).
3. The formats near that price, and each format for all layers, are filled up to the budget with
   the most important blocks; the best of them is improved layer by layer (`fit`).

Importance alone ranks the dimensions: subtracting the cost of rounding them made no measurable
difference.

Bytes are those stored, or those that a token reads; then a dimension of an expert counts by the
share of tokens that the router sends there. With both limits, bytes are a weighted mean of the two,
whose weights are searched for so that both limits are met (`balanced`).

Legend: B blocks of a layer, N blocks of all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.errors import PlanError

BISECTIONS = 60
"""Steps of the search for the price."""

WEIGHT_BISECTIONS = 12
"""Steps of the search for the weights of two limits."""


@dataclass(frozen=True)
class Blocks:
    """Rows of a layer's experts that are kept or dropped together.

    Attributes:
        expert_B: Expert of each block, int64; an expert's blocks descend in importance.
        rows_B: Rows of each block, int64.
        value_B: Loss from dropping a block; infinite if it is kept before all else.
        rounding_B: Loss from rounding a block with a relative squared error of 1.
        share_B: Bytes of the budget that a byte of a block counts: 1 if they are those stored, the
            share of the tokens that read the block if they are those read.
    """

    expert_B: NDArray[np.int64]
    rows_B: NDArray[np.int64]
    value_B: NDArray[np.float64]
    rounding_B: NDArray[np.float64]
    share_B: NDArray[np.float64]

    @property
    def known_B(self) -> NDArray[np.float64]:
        """Loss from dropping a block, 0 if it is not known."""
        return np.where(np.isfinite(self.value_B), self.value_B, 0.0)

    def bytes_B(self, option: Option) -> NDArray[np.float64]:
        """Bytes of each block in a format."""
        size_B: NDArray[np.float64] = self.rows_B * self.share_B * option.row_bytes
        return size_B


@dataclass(frozen=True)
class Option:
    """A format that a layer may have.

    Attributes:
        name: Word of the format.
        row_bytes: Bytes of one row.
        fixed_bytes: Bytes of a shared expert that stays whole and has the same format.
        error: Squared error of the weights in the format over their squares.
    """

    name: str
    row_bytes: float
    fixed_bytes: float
    error: float


@dataclass(frozen=True)
class Chosen:
    """A format and the kept blocks of one layer.

    Attributes:
        option: Format of the layer.
        blocks: Blocks of the layer.
        kept_B: True for each block that is kept.
    """

    option: Option
    blocks: Blocks
    kept_B: NDArray[np.bool_]

    @property
    def loss(self) -> float:
        """Predicted loss, as far as it is known."""
        rounding_B = self.option.error * self.blocks.rounding_B
        return float(np.where(self.kept_B, rounding_B, self.blocks.known_B).sum())

    @property
    def size_bytes(self) -> float:
        """Bytes of the kept blocks, and the fixed bytes of the format."""
        return self.option.fixed_bytes + float(self.blocks.bytes_B(self.option)[self.kept_B].sum())

    def widths(self, num_experts: int) -> tuple[int, ...]:
        """Number of rows that each expert keeps."""
        rows_B, expert_B = self.blocks.rows_B[self.kept_B], self.blocks.expert_B[self.kept_B]
        return tuple(int(n) for n in np.bincount(expert_B, rows_B, minlength=num_experts))


def choose(blocks: Blocks, options: Sequence[Option], price: float) -> Chosen:
    """The format and the blocks of a layer with least loss and price together.

    >>> one = np.ones(2)
    >>> values = np.array([8.0, 0.5])
    >>> blocks = Blocks(np.zeros(2, int), np.array([2, 2]), values, values, one)
    >>> options = [Option("float", 4, 0, 0.0), Option("int4", 1, 0, 0.1)]
    >>> chosen = choose(blocks, options, price=0.5)
    >>> chosen.option.name, chosen.widths(1), chosen.loss, chosen.size_bytes
    ('int4', (2,), 1.3, 2.0)

    Args:
        blocks: Blocks of all experts of the layer.
        options: Formats, at least one; the first of several that cost the same is taken.
        price: Loss per byte.
    """
    candidates = []
    for option in options:
        worth_it_B = blocks.value_B > price * blocks.bytes_B(option)
        candidates.append(Chosen(option, blocks, worth_it_B))
    return min(candidates, key=lambda chosen: chosen.loss + price * chosen.size_bytes)


def fit(
    layers: Sequence[Blocks],
    options: Sequence[Sequence[Option]],
    limit_bytes: float,
    fits: Callable[[Sequence[Chosen]], bool],
) -> list[Chosen]:
    """The choice of least predicted loss that fits.

    Some formats change at the price where the budget is met, which leaves a part of the budget
    unused. So the formats on both sides of that price, and every format for all layers alike, are
    each filled up to the budget with the most important blocks. The best of these is taken, and
    layers are changed one by one while that loses less.

    Args:
        layers: Blocks of each layer.
        options: Formats of each layer, in the same order of names.
        limit_bytes: Budget, less the bytes that are in no option.
        fits: Function that returns True if a choice is within the budget exactly; sizes by the row
            are only approximate.

    Raises:
        PlanError: not even an empty model fits.
    """
    picks = _price_picks(layers, options, limit_bytes)
    picks += [[choice[number] for choice in options] for number in range(len(options[0]))]
    best: tuple[float, list[Option]] | None = None
    for pick in picks:
        best = _better(best, layers, pick, limit_bytes)
    if best is None:
        raise PlanError(
            "plan: the budget is less than what lies outside the experts that are pruned; raise it"
        )
    improved = True
    while improved:
        improved = False
        for layer, choice in enumerate(options):
            for option in choice:
                pick = [*best[1][:layer], option, *best[1][layer + 1 :]]
                better = _better(best, layers, pick, limit_bytes)
                improved = improved or better is not best
                best = better or best
    return _exactly(layers, best[1], fits)


def balanced(excess: Callable[[float], float]) -> float:
    """The weight of the second of two limits, 0 to 1, at which neither is exceeded more.

    A single limit is enough where the other is met by itself.

    >>> balanced(lambda weight: 0.25 - weight)
    0.25
    >>> balanced(lambda weight: -1.0), balanced(lambda weight: 1.0)
    (0.0, 1.0)

    Args:
        excess: Function from the weight to how much further the choice is above the second limit
            than above the first, as shares of them; falls with the weight.
    """
    low, high = 0.0, 1.0
    if excess(low) <= 0:
        return low
    if excess(high) >= 0:
        return high
    for _ in range(WEIGHT_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


def loss_of(chosen: Sequence[Chosen]) -> float:
    """The predicted loss of all layers."""
    return sum(layer.loss for layer in chosen)


def _price_picks(
    layers: Sequence[Blocks], options: Sequence[Sequence[Option]], limit_bytes: float
) -> list[list[Option]]:
    """The formats just above and just below the price at which the budget is met."""

    def at(price: float) -> list[Chosen]:
        return [
            choose(blocks, choice, price) for blocks, choice in zip(layers, options, strict=True)
        ]

    worth = [float(blocks.known_B.max(initial=0)) for blocks in layers]
    low, high = 0.0, max(worth) / min(option.row_bytes for option in options[0]) + 1e-300
    below, above = at(low), at(high)
    for _ in range(BISECTIONS):
        # Bisection of the logarithm, since prices span many orders of magnitude.
        middle = (low * high) ** 0.5 if low else high / 1024
        choice = at(middle)
        if sum(chosen.size_bytes for chosen in choice) <= limit_bytes:
            high, above = middle, choice
        else:
            low, below = middle, choice
    return [[chosen.option for chosen in side] for side in (above, below)]


def _better(
    best: tuple[float, list[Option]] | None,
    layers: Sequence[Blocks],
    pick: list[Option],
    limit_bytes: float,
) -> tuple[float, list[Option]] | None:
    """The pick with its loss if it loses less than the best, otherwise the best."""
    room = limit_bytes - sum(option.fixed_bytes for option in pick)
    if room < 0:
        return best
    order, bytes_N = _by_worth(layers, pick)
    number = int(np.searchsorted(np.cumsum(bytes_N[order]), room, side="right"))
    loss = loss_of(_first(layers, pick, order, number))
    return (loss, pick) if best is None or loss < best[0] else best


def _exactly(
    layers: Sequence[Blocks], pick: list[Option], fits: Callable[[Sequence[Chosen]], bool]
) -> list[Chosen]:
    """The greatest number of blocks, most important first, that fits in given formats.

    Raises:
        PlanError: not even an empty model fits.
    """
    order, _ = _by_worth(layers, pick)
    least, most = 0, len(order)
    while least < most:
        number = (least + most + 1) // 2
        enough = fits(_first(layers, pick, order, number))
        least, most = (number, most) if enough else (least, number - 1)
    chosen = _first(layers, pick, order, least)
    if least == 0 and not fits(chosen):
        raise PlanError(
            "plan: the budget is less than what lies outside the experts that are pruned; raise it"
        )
    return chosen


def _by_worth(
    layers: Sequence[Blocks], pick: Sequence[Option]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All blocks of the model in order of importance per byte, and the bytes of each."""
    bytes_N = np.concatenate([b.bytes_B(o) for b, o in zip(layers, pick, strict=True)])
    saved_N = np.concatenate([blocks.value_B for blocks in layers])
    free_N = bytes_N == 0
    worth_N = np.where(free_N, np.inf, saved_N / np.where(free_N, 1.0, bytes_N))
    return np.argsort(-worth_N, kind="stable"), bytes_N


def _first(
    layers: Sequence[Blocks], pick: Sequence[Option], order: NDArray[np.int64], number: int
) -> list[Chosen]:
    """The choice of the first blocks in an order."""
    kept_N: NDArray[Any] = np.zeros(len(order), bool)
    kept_N[order[:number]] = True
    ends = np.cumsum([len(blocks.rows_B) for blocks in layers])[:-1]
    return [
        Chosen(option, blocks, kept_B)
        for blocks, option, kept_B in zip(layers, pick, np.split(kept_N, ends), strict=True)
    ]
