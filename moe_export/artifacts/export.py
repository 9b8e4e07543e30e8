"""The record of an export: sizes and counts of each model."""

from __future__ import annotations

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.weight_bytes import WeightBytes
from moe_export.recipe import Dtype


class ExportedModel(Record):
    """One exported model.

    Attributes:
        nodes: nodes of the graph.
        quantization: formats of the tensors; None if nothing is quantized.
        weights: bytes of the weights as they were predicted from the checkpoint.
        data_bytes: size of `model.onnx.data`.
        graph_bytes: size of `model.onnx`.
    """

    nodes: int
    quantization: TensorFormats | None
    weights: WeightBytes
    data_bytes: int
    graph_bytes: int


class Export(JsonArtifact):
    """The exported models of a run, made by the export stage.

    Attributes:
        dtype: dtype of everything that is not quantized.
        variants: the models by the name of their variant and folder.
    """

    FILE = "export.json"

    dtype: Dtype
    variants: dict[str, ExportedModel]
