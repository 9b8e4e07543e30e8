"""Formats of a model's weights, and the section that rounds them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from moe_export.formats import TABLE
from moe_export.quantization import (
    FormatWord,
    Method,
    Quantization,
    choices_for_experts,
    words_for,
)
from moe_export.recipe.base import Count, Factor, OneOf, Section

AUTO = "auto"
"""Word that leaves the format of each layer's experts to the plan."""

ExpertFormat = Annotated[str, OneOf(lambda: (*words_for("experts"), AUTO))]
DenseFormat = Annotated[str, OneOf(lambda: words_for("dense"))]
EmbeddingFormat = Annotated[str, OneOf(lambda: words_for("embedding"))]
ExpertChoice = Annotated[str, OneOf(choices_for_experts)]


class Formats(Section):
    """Formats that weights are stored in.

    int8 and int4 have codes around 0; uint8 and uint4 have a zero point for each group
    (asymmetric); nf4 has sixteen values that suit normally distributed weights. bfloat16 stores
    experts as floats in two bytes, in an export of any dtype. The router is always float.

    Attributes:
        experts: Format of all matrices of experts. The shared expert's are included, since they are
            in the same node. `auto` has the plan choose a format for each layer, so that a byte
            budget loses least.
        choices: Formats that `auto` chooses from.
        dense: Format of the matrices of attention and of layers without experts.
        lm_head: Format of the lm_head; as `dense` unless given. If the embedding's table is the
            lm_head too, a quantized one is stored apart, and `float` keeps one table for both.
        embedding: Format of the embedding's table; float if the table is the lm_head too and that
            is float.
        group_size: Number of weights along the inputs that share a scale.
    """

    experts: ExpertFormat = "int4"
    choices: Annotated[tuple[ExpertChoice, ...], Field(min_length=1)] = ("float", "int8", "int4")
    dense: DenseFormat = "float"
    lm_head: DenseFormat | None = None
    embedding: EmbeddingFormat = "float"
    group_size: Literal[32, 64, 128] = 32

    @field_validator("dense", "lm_head", mode="before")
    @classmethod
    def _no_codebook(cls, word: Any) -> Any:
        grid = TABLE[word].grid if isinstance(word, str) and word in TABLE else None
        if grid is not None and grid.codebook is not None:
            raise ValueError(
                f"{word} is for experts only, since MatMulNBits has no codebook; choose int4 or "
                "uint4"
            )
        return word

    @property
    def is_auto(self) -> bool:
        """True if the plan chooses the formats of experts."""
        return self.experts == AUTO

    def quantization(
        self, experts: FormatWord | tuple[FormatWord, ...] | None = None
    ) -> Quantization:
        """The formats of a model's tensors.

        Args:
            experts: Format of the experts, in place of the recipe's word.
        """
        if experts is None:
            assert not self.is_auto
            experts = self.experts
        return Quantization(experts, self.dense, self.embedding, self.group_size, self.lm_head)


class QuantizeSettings(Formats):
    """Formats of the quantized model, and the method that rounds its weights.

    Attributes:
        method: `rtn` rounds to the nearest code; the largest value of a group gets the last one.
            `mse` takes for each group the scale of least squared error. `gptq` adjusts the weights
            that are not yet rounded to compensate, using calibration inputs; it runs the pruned
            model in torch, layer by layer, and takes `mse` for a matrix that fewer tokens reach
            than it has inputs, which `quantization.json` and the report list.
        damping: Addition of gptq to the diagonal of the inputs' second moments, over its mean.
        calibration_tokens: Most calibration tokens that gptq uses.
    """

    method: Method = "rtn"
    damping: Factor = 0.01
    calibration_tokens: Count = 65536

    @model_validator(mode="after")
    def _something(self) -> QuantizeSettings:
        if not self.is_auto and self.quantization().is_float:
            raise ValueError("everything in the section is float; leave it out")
        return self
