"""The record of quantization: the format and the error of every tensor."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.formats import ExpertFormat, TensorFormats
from moe_export.quantization import Method


class KeptTensor(Record):
    """A tensor that is stored as it was.

    Attributes:
        action: always `kept`.
        bytes: size as written.
    """

    action: Literal["kept"]
    bytes: int


class QuantizedTensor(Record):
    """A tensor in another format.

    Attributes:
        action: always `quantized`.
        format: format as written.
        group_size: values of a column that share a scale; None for a float format.
        method: rounding method; None for a float format.
        tokens: calibration tokens that reached the matrix; None if the method needs none.
        bytes: size as written, with scales and zero points.
        relative_error: root of the squared error over the squared values, 0 or more.
    """

    action: Literal["quantized"]
    format: ExpertFormat
    group_size: int | None
    method: Method | None
    tokens: int | None
    bytes: int
    relative_error: float


StoredTensor = Annotated[KeptTensor | QuantizedTensor, Field(discriminator="action")]


class QuantizedCounts(Record):
    """Numbers of tensors by what became of them."""

    kept: int
    quantized: int


class Fallback(Record):
    """A matrix that another method rounded than the recipe asks for.

    Attributes:
        tensor: name in the checkpoint.
        layer: number of its layer; None outside the layers.
        expert: number of its expert; None if it belongs to none.
        method: method that was used.
        tokens: calibration tokens that reached the matrix; None if the method needs none.
        inputs: inputs of the matrix, the tokens that the recipe's method would need.
    """

    tensor: str
    layer: int | None
    expert: int | None
    method: Method
    tokens: int | None
    inputs: int


class QuantizedClass(Record):
    """Sums over the quantized tensors of one class.

    Attributes:
        tensors: number of tensors.
        elements: number of their values.
        code_bytes: bytes of codes.
        scale_bytes: bytes of scales and zero points.
        relative_error: root of the squared error over the squared values, 0 or more.
    """

    tensors: int
    elements: int
    code_bytes: int
    scale_bytes: int
    relative_error: float


class QuantizationRecord(TensorFormats, JsonArtifact):
    """The account of every tensor, made by the quantize stage.

    Attributes:
        method: rounding method of the recipe.
        tensor_bytes: bytes of all tensors of the quantized checkpoint.
        counts: numbers of tensors by action.
        fallbacks: matrices that another method rounded.
        classes: sums by class of tensors, without classes of which nothing is quantized.
        tensors: every tensor by its name in the checkpoint.
    """

    FILE = "quantization.json"

    method: Method
    tensor_bytes: int
    counts: QuantizedCounts
    fallbacks: tuple[Fallback, ...]
    classes: dict[str, QuantizedClass]
    tensors: dict[str, StoredTensor]
