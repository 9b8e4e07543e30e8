"""Number formats of a model's tensors, as artifacts state them."""

from __future__ import annotations

from typing import Annotated, Self

from moe_export.artifacts.base import Record
from moe_export.quantization import Quantization, words_for
from moe_export.recipe.base import OneOf

ExpertFormat = Annotated[str, OneOf(lambda: words_for("experts"))]
DenseFormat = Annotated[str, OneOf(lambda: words_for("dense"))]
EmbeddingFormat = Annotated[str, OneOf(lambda: words_for("embedding"))]


class TensorFormats(Record):
    """The format of each class of tensors; `float` is the dtype of the model.

    Attributes:
        experts: format of all experts' matrices, or one format per layer.
        dense: format of the matrices of attention and of layers without experts.
        embedding: format of the token embeddings.
        group_size: values of a column that share a scale.
        lm_head: format of the lm_head; None if it has that of `dense`.
    """

    experts: ExpertFormat | tuple[ExpertFormat, ...]
    dense: DenseFormat
    embedding: EmbeddingFormat
    group_size: int
    lm_head: DenseFormat | None = None

    @classmethod
    def of(cls, quantization: Quantization) -> Self:
        """Makes the record from the formats that the recipe's words give."""
        return cls(**vars(quantization))

    @property
    def quantization(self) -> Quantization:
        """The formats as the rest of the package uses them."""
        return Quantization(self.experts, self.dense, self.embedding, self.group_size, self.lm_head)
