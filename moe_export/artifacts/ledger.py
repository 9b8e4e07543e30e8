"""The ledger of pruning: what became of every tensor of the checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from moe_export.artifacts.base import JsonArtifact, Record


class PrunedTensor(Record):
    """One tensor of the pruned checkpoint.

    Attributes:
        action: `sliced` if dimensions were removed, else `kept`.
        shape_before: shape in the source; `from` in the file.
        shape_after: shape as written; `to` in the file.
        bytes: size as written.
    """

    action: Literal["kept", "sliced"]
    shape_before: tuple[int, ...] = Field(validation_alias="from", serialization_alias="from")
    shape_after: tuple[int, ...] = Field(validation_alias="to", serialization_alias="to")
    bytes: int


class PrunedCounts(Record):
    """Numbers of tensors by what became of them; those dropped hold nothing of their own."""

    kept: int
    sliced: int
    dropped: int


class LeftTensor(Record):
    """A pruned `down` matrix that was not fitted.

    Attributes:
        tensor: name in the checkpoint.
        tokens: calibration tokens that reached its expert.
    """

    tensor: str
    tokens: int


class BlockErrors(Record):
    """Squared errors of a block on held-out tokens, over the mean square of its wanted outputs.

    Attributes:
        layer: number of the layer.
        pruned: error without the removed dimensions, before fitting.
        refit: error with `down` refitted.
        distilled: error after block-wise distillation as well; None if not asked for.
    """

    layer: int
    pruned: float
    refit: float
    distilled: float | None = None

    @property
    def taken(self) -> float:
        """Error with the weights that were taken."""
        errors = (self.pruned, self.refit, self.distilled)
        return min(error for error in errors if error is not None)

    @property
    def is_distilled(self) -> bool:
        """True if the distilled weights were taken."""
        return self.distilled is not None and self.distilled < min(self.pruned, self.refit)


class Refit(Record):
    """Fitting of the blocks' kept weights.

    Attributes:
        tensors: names of the tensors that were changed.
        left: pruned `down` matrices that were not, because too few tokens reached their experts or
            the block was no better with them on held-out tokens.
        experts: number of experts whose `down` was changed; None in files of older versions.
        blocks: errors of the blocks that were fitted; None in files of older versions.
    """

    tensors: tuple[str, ...]
    left: tuple[LeftTensor, ...]
    experts: int | None = None
    blocks: tuple[BlockErrors, ...] | None = None


class HeldOutKl(Record):
    """Mean KL divergence from the unpruned model on held-out tokens, in nats per token.

    Attributes:
        before: KL with the routers as they were.
        after: KL with the distilled routers.
    """

    before: float
    after: float


class Distill(Record):
    """Distilling of the routers.

    Attributes:
        tensors: names of the routers that were replaced; empty if the new ones were no better.
        tokens: calibration tokens that the routers were trained on.
        held_out_tokens: calibration tokens that they were judged on.
        held_out_kl_nats: KL on the held-out tokens.
    """

    tensors: tuple[str, ...]
    tokens: int
    held_out_tokens: int
    held_out_kl_nats: HeldOutKl


class Ledger(JsonArtifact):
    """The account of every tensor, made by the prune stage.

    Attributes:
        tensor_bytes: bytes of all tensors of the pruned checkpoint.
        counts: numbers of tensors by action.
        refit: fitting of blocks; its lists are empty if it was not asked for.
        distill: distilling of routers; None if it was not asked for.
        tensors: every tensor by its name in the checkpoint.
        dropped: reasons by the name of each tensor that was left out by rule; absent if all tensors
            of the source are accounted for above.
    """

    FILE = "ledger.json"

    tensor_bytes: int
    counts: PrunedCounts
    refit: Refit
    distill: Distill | None = None
    tensors: dict[str, PrunedTensor]
    dropped: dict[str, str] | None = None
