"""Scores as data: formulas with their unit, source and needs.

Legend: N routed pairs of a token and one expert, S sequences of a batch, D hidden, W width of the
expert, R rows of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from moe_export.passes.loss import Loss
    from moe_export.torch_model.recording import Quantity


@dataclass(frozen=True)
class ExpertWeights:
    """Weights of one expert, in the dtype of the model.

    Attributes:
        layer: Number of the layer.
        expert: Number of the expert; the shared one has the number after the last.
        gate_WD: Weights of gate.
        up_WD: Weights of up.
        down_DW: Weights of down.
    """

    layer: int
    expert: int
    gate_WD: Tensor
    up_WD: Tensor
    down_DW: Tensor


@dataclass(frozen=True)
class ExpertBatch:
    """Values and gradients in one expert for the tokens of a batch that were routed to it, padding
    apart; the shared expert has all tokens.

    Attributes:
        weights: Weights of the expert.
        num_sequences: Number of sequences S of the batch.
        targets_S: Number of tokens of each sequence that have a loss: all but the first, float64.
        sequence_N: Number of each token's sequence within the batch, int64, ascending.
        routing_N: Routing weights.
        values: Recorded quantities [N, ...] that some score asks for; see `recording.Quantity`.
        gradients: Gradients of the sum of the sequences' mean losses with respect to these
            quantities, for each loss.
    """

    weights: ExpertWeights
    num_sequences: int
    targets_S: Tensor
    sequence_N: Tensor
    routing_N: Tensor
    values: Mapping[Quantity, Tensor]
    gradients: Mapping[Loss, Mapping[Quantity, Tensor]]

    def split(self, tokens: int) -> Iterator[ExpertBatch]:
        """Splits into parts of whole sequences, whose contributions add up to that of all.

        Args:
            tokens: Most tokens of a part, unless it is a single sequence.
        """
        start = stop = 0
        for count in (*self.sequence_N.bincount().tolist(), None):
            if count is None or (stop > start and stop - start + count > tokens):
                yield self._part(slice(start, stop))
                start = stop
            stop += count or 0

    def by_source(self, source_S: Tensor) -> Iterator[tuple[int, ExpertBatch]]:
        """Splits into the parts of each source, whose contributions add up to that of all.

        Args:
            source_S: Number of each sequence's source, int64.

        Yields:
            Number of the source, and its part.
        """
        source_N = source_S[self.sequence_N]
        sources = source_N.unique().tolist()
        for source in sources:
            yield source, self if len(sources) == 1 else self._part(source_N == source)

    def _part(self, part: slice | Tensor) -> ExpertBatch:
        def of(values: Mapping[Quantity, Tensor]) -> dict[Quantity, Tensor]:
            return {name: value[part] for name, value in values.items()}

        return replace(
            self,
            sequence_N=self.sequence_N[part],
            routing_N=self.routing_N[part],
            values=of(self.values),
            gradients={loss: of(values) for loss, values in self.gradients.items()},
        )


@dataclass(frozen=True)
class Score:
    """A ranking of dimensions: more is more important.

    Attributes:
        name: Name in recipes and files.
        unit: Unit of the value.
        source: Publication or project that the formula comes from.
    """

    name: str
    unit: str
    source: str

    @property
    def formula(self) -> str:
        """The docstring of the function that computes it."""
        raise NotImplementedError


@dataclass(frozen=True)
class DataScore(Score):
    """A score measured on the calibration set.

    Attributes:
        measure: Function from a batch to its contribution to the sum, float64 [W].
        mean_over: Divisor of the sum: the sequences, the tokens or the targets (tokens that have a
            loss) of the whole set, the tokens routed to the expert, or 1 if None. Except in a mean
            over sequences, a source counts as the recipe's `weight` says; see `SourceWeights`.
        values: Quantities of `ExpertBatch.values` that `measure` reads.
        loss: Loss whose gradients it reads; None if it reads none.
        gradients: Quantities whose gradients it reads.
        known_if_unreached: True if an expert that no token reached has a value; otherwise +inf.
    """

    measure: Callable[[ExpertBatch], Tensor]
    mean_over: Literal["sequences", "tokens", "targets", "routed_tokens"] | None
    values: tuple[Quantity, ...]
    loss: Loss | None = None
    gradients: tuple[Quantity, ...] = ()
    known_if_unreached: bool = False

    @property
    def formula(self) -> str:
        """The docstring of the function that computes it."""
        return self.measure.__doc__ or ""


@dataclass(frozen=True)
class DerivedScore(Score):
    """A score computed from other scores, which are measured with it.

    Attributes:
        parts: The other scores.
        combine: Function from the values of the parts, float64 [R] per layer each, to its own.
    """

    parts: tuple[DataScore, ...]
    combine: Callable[..., list[NDArray[np.float64]]]

    @property
    def formula(self) -> str:
        """The docstring of the function that computes it."""
        return self.combine.__doc__ or ""


def measured(scores: Iterable[Score]) -> list[Score]:
    """Scores that a pass has to measure for others: each once, parts in place of derived ones."""
    parts = [s.parts if isinstance(s, DerivedScore) else (s,) for s in scores]
    return list(dict.fromkeys(score for each in parts for score in each))


@dataclass(frozen=True)
class WeightScore(Score):
    """A score that needs no data.

    Attributes:
        measure: Function from an expert's weights to the value, float64 [W].
    """

    measure: Callable[[ExpertWeights], Tensor]

    @property
    def formula(self) -> str:
        """The docstring of the function that computes it."""
        return self.measure.__doc__ or ""
