"""Sizes of an export, computed before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.families.base import TENSOR_CLASSES, ModelSpec
from moe_export.families.features import VECTOR_ROLES
from moe_export.families.stored import scale_name
from moe_export.graph.builder import (
    CLASS_KEY,
    CONSTANTS,
    EXPERT_BYTES_KEY,
    LAYER_KEY,
    OWNER_KEY,
    SCALES,
    SHARES_KEY,
)
from moe_export.graph.decoder import build_decoder
from moe_export.graph.external_data import layout as placements
from moe_export.op.spec import Dtype, Layout, LinearWord


@dataclass(frozen=True)
class PredictedBytes:
    """Bytes of the data file of an export, by their use.

    Attributes:
        by_class: Bytes of each of `families.base.TENSOR_CLASSES`, then `scales` (and zero
            points of all quantized weights), `constants` (the rotary tables and the like,
            and the headers of packed weights) and `padding` (between weights).
        experts_by_layer: Bytes of the routed experts of each layer, with their scales.
        embedding_bytes: Bytes of the table that token embeddings are looked up in.
        vectors_bytes: Bytes of the vectors of compressed experts.
    """

    by_class: dict[str, int]
    experts_by_layer: tuple[int, ...]
    embedding_bytes: int
    vectors_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """Size of `model.onnx.data`."""
        return sum(self.by_class.values())

    def active_bytes(self, spec: ModelSpec, shares: Sequence[NDArray[np.float64]]) -> int:
        """Bytes of weights that one token reads, mean over tokens.

        A token reads one row of the embedding, the experts it is routed to, the vectors of its
        auxiliary experts and all other weights.

        Args:
            spec: Sizes of the model that these bytes belong to.
            shares: Share of all tokens that each expert gets, one array [E] per layer.
        """
        experts = 0.0
        for layer_bytes, widths, share_E in zip(
            self.experts_by_layer, spec.widths, shares, strict=True
        ):
            rows = sum(widths)
            experts += layer_bytes * float(np.dot(share_E, widths)) / rows if rows else 0.0
        read = sum(self.by_class.values()) - sum(self.experts_by_layer)
        read -= self.by_class["constants"] + self.by_class["padding"]
        if not spec.tied_embeddings:
            read -= self.embedding_bytes - self.embedding_bytes // spec.vocab_size
        if spec.compressed is not None:
            rows = self.vectors_bytes // spec.num_experts
            read -= self.vectors_bytes - rows * spec.compressed.auxiliary
        return round(read + experts)

    def as_dict(self) -> dict[str, Any]:
        """JSON values of the total, the classes and the experts' layers."""
        return {
            "total_bytes": self.total_bytes,
            "by_class": self.by_class,
            "experts_by_layer": list(self.experts_by_layer),
        }


def predicted_bytes(
    spec: ModelSpec, dtype: Dtype, layout: Layout = "portable", linear: LinearWord = "auto"
) -> PredictedBytes:
    """Exact bytes of a model's weights once exported; see `build_decoder` for the arguments."""
    model = build_decoder(spec, dtype, None, layout, linear)
    by_class = dict.fromkeys((*TENSOR_CLASSES, SCALES, CONSTANTS, "padding"), 0)
    experts = [0] * spec.num_layers
    embedding = spec.name("embedding")
    vectors = {name for name, tensor in spec.tensors.items() if tensor.role in VECTOR_ROLES}
    embedding_bytes = vectors_bytes = end = 0
    for name, offset, size_bytes in placements(model):
        meta = model.graph.initializers[name].meta
        shares = meta.get(SHARES_KEY, {meta.get(CLASS_KEY, CONSTANTS): size_bytes})
        for tensor_class, share_bytes in shares.items():
            by_class[tensor_class] += share_bytes
        by_class["padding"] += offset - end
        if name in (embedding, scale_name(embedding)):
            embedding_bytes += size_bytes
        if name in vectors:
            vectors_bytes += size_bytes
        if meta.get(OWNER_KEY) == "experts":
            experts[meta[LAYER_KEY]] += meta.get(EXPERT_BYTES_KEY, size_bytes)
        end = offset + size_bytes
    return PredictedBytes(by_class, tuple(experts), embedding_bytes, vectors_bytes)
