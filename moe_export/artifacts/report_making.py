"""Sections of `report.json` about the making: compensation, quantization, stages and methods."""

from __future__ import annotations

from pydantic import Field

from moe_export.artifacts.base import Record
from moe_export.artifacts.ledger import HeldOutKl
from moe_export.artifacts.quantization import Fallback
from moe_export.artifacts.stage_mark import PredictedCost


class RefitFacts(Record):
    """Fitting of the blocks' kept weights.

    Attributes:
        experts: number of experts whose `down` was fitted.
        left: number of pruned experts whose `down` stayed as it was.
        distilled_blocks: number of blocks whose distilled weights were taken; None if not asked
            for.
        error_pruned: mean over the fitted blocks of the squared error on held-out tokens, over the
            mean square of the wanted outputs, before fitting; None if no block was fitted.
        error_fitted: the same error with the weights that were taken.
    """

    experts: int
    left: int
    distilled_blocks: int | None = None
    error_pruned: float | None = None
    error_fitted: float | None = None


class DistillFacts(Record):
    """Distilling of the routers.

    Attributes:
        tokens: number of calibration tokens for training.
        held_out_tokens: number of calibration tokens held out.
        held_out_kl_nats: mean KL from the unpruned model on the held-out tokens.
        routers: number of replaced routers; 0 if the distilled ones are no better.
    """

    tokens: int
    held_out_tokens: int
    held_out_kl_nats: HeldOutKl
    routers: int


class CompensationFacts(Record):
    """Weights fitted to make up for what was removed.

    Attributes:
        refit: fitting of the blocks; None if not asked for.
        distill: distilling of the routers; None if not asked for.
    """

    refit: RefitFacts | None
    distill: DistillFacts | None


class ClassError(Record):
    """Error of quantization of one class of tensors.

    Attributes:
        name: class of tensors.
        relative_error: root of the squared error of the weights over that of their squares.
    """

    name: str = Field(validation_alias="class", serialization_alias="class")
    relative_error: float


class QuantizationFacts(Record):
    """Losses of quantization.

    Attributes:
        method: rounding method of the recipe.
        matrices: number of quantized matrices.
        classes: error by class of tensors.
        fallbacks: matrices that another method rounded.
    """

    method: str
    matrices: int
    classes: tuple[ClassError, ...]
    fallbacks: tuple[Fallback, ...]


class StageCost(Record):
    """Cost of one stage.

    Attributes:
        stage: name of the stage.
        wall_s: time, seconds.
        peak_resident_bytes: peak resident memory of the process while the stage ran.
        output_bytes: size of all files that the stage wrote.
        predicted: prediction made before the run; None if none was made.
        threads: number of torch's threads, if the output depends on it.
    """

    stage: str
    wall_s: float
    peak_resident_bytes: int
    output_bytes: int
    predicted: PredictedCost | None
    threads: int | None = None


class Method(Record):
    """Method of measurement of a quantity.

    Attributes:
        quantity: figure of the report, in words.
        method: method of its measurement, in words.
    """

    quantity: str
    method: str
