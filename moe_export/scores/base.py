"""What a score is.

Legend: N routed pairs of a token and one expert, S sequences of a batch, D hidden, W width of the
expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from moe_export.passes.loss import Loss
    from moe_export.torch_model.recording import Quantity


@dataclass(frozen=True)
class ExpertWeights:
    """One expert: gate and up [W, D], down [D, W], in the dtype of the model; the shared one has
    the number after the last.
    """

    layer: int
    expert: int
    gate_WD: Tensor
    up_WD: Tensor
    down_DW: Tensor


@dataclass(frozen=True)
class ExpertBatch:
    """What one expert did with the real tokens of one batch that were routed to it; the shared one
    with all of them.

    Attributes:
        weights: of the expert.
        num_sequences: S.
        sequence_N: int64, ascending; the sequence within the batch that each token is of.
        routing_N: routing weights.
        values: see `recording.Quantity`; those that the score asks for are there.
        gradients: of the sum of the sequences' losses, for each loss and quantity asked for.
    """

    weights: ExpertWeights
    num_sequences: int
    sequence_N: Tensor
    routing_N: Tensor
    values: Mapping[Quantity, Tensor]
    gradients: Mapping[Loss, Mapping[Quantity, Tensor]]

    def split(self, tokens: int) -> Iterator[ExpertBatch]:
        """Parts of whole sequences, each of at most so many tokens or of a single sequence. What a
        score measures of them adds up to what it measures of all.
        """
        start = stop = 0
        for count in (*self.sequence_N.bincount().tolist(), None):
            if count is None or (stop > start and stop - start + count > tokens):
                yield self._part(slice(start, stop))
                start = stop
            stop += count or 0

    def _part(self, part: slice) -> ExpertBatch:
        def of(values: Mapping[Quantity, Tensor]) -> dict[Quantity, Tensor]:
            return {name: value[part] for name, value in values.items()}

        return replace(
            self,
            sequence_N=self.sequence_N[part],
            routing_N=self.routing_N[part],
            values=of(self.values),
            gradients={loss: of(found) for loss, found in self.gradients.items()},
        )


@dataclass(frozen=True)
class Score:
    """Something that dimensions can be ranked by: more is more important.

    Attributes:
        name: in recipes and files.
        unit: of the value.
        source: where it is from.
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
    """A score of what an expert does with the calibration set.

    Attributes:
        measure: a batch's contribution to the sum, float64 [W].
        mean_over: what the sum is divided by: the sequences or the tokens of the whole set, the
            tokens routed to the expert, or nothing.
        values: what `measure` reads of `ExpertBatch.values`.
        loss: the loss whose gradients it reads, if any.
        gradients: the quantities it reads the gradients of.
        known_if_unreached: whether an expert that no token reached has a value; if not it is +inf.
    """

    measure: Callable[[ExpertBatch], Tensor]
    mean_over: Literal["sequences", "tokens", "routed_tokens"] | None
    values: tuple[Quantity, ...]
    loss: Loss | None = None
    gradients: tuple[Quantity, ...] = ()
    known_if_unreached: bool = False

    @property
    def formula(self) -> str:
        """The docstring of the function that computes it."""
        return self.measure.__doc__ or ""


@dataclass(frozen=True)
class WeightScore(Score):
    """A score that needs no data.

    Attributes:
        measure: the value, float64 [W].
    """

    measure: Callable[[ExpertWeights], Tensor]

    @property
    def formula(self) -> str:
        """The docstring of the function that computes it."""
        return self.measure.__doc__ or ""
