"""Sizes of an export, computed before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.families.alike import first_alike, with_layers
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
from moe_export.graph.external_data import is_outside, offset_after
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


@dataclass(frozen=True)
class _Weight:
    """Weight of the data file.

    Attributes:
        layer: Layer of the built model; None for a weight outside the layers.
        size_bytes: Size in the file.
        shares: Bytes by class.
        expert_bytes: Bytes that belong to routed experts, scales included.
        embedding_bytes: Bytes of the table that token embeddings are looked up in.
        vectors_bytes: Bytes of the vectors of compressed experts.
    """

    layer: int | None
    size_bytes: int
    shares: dict[str, int]
    expert_bytes: int
    embedding_bytes: int
    vectors_bytes: int


def predicted_bytes(
    spec: ModelSpec, dtype: Dtype, layout: Layout = "portable", linear: LinearWord = "auto"
) -> PredictedBytes:
    """Exact bytes of a model's weights once exported; see `build_decoder` for the arguments.

    The graph of one layer of each kind tells the sizes of all that are alike.
    """
    firsts = first_alike(spec)
    built = sorted(set(firsts))
    weights = _weights(with_layers(spec, built), dtype, layout, linear)
    by_class = dict.fromkeys((*TENSOR_CLASSES, SCALES, CONSTANTS, "padding"), 0)
    experts = [0] * spec.num_layers
    embedding_bytes = vectors_bytes = end = 0
    for weight, layer in _in_file_order(weights, [built.index(first) for first in firsts]):
        for tensor_class, share_bytes in weight.shares.items():
            by_class[tensor_class] += share_bytes
        offset = offset_after(end, weight.size_bytes)
        by_class["padding"] += offset - end
        end = offset + weight.size_bytes
        embedding_bytes += weight.embedding_bytes
        vectors_bytes += weight.vectors_bytes
        if layer is not None:
            experts[layer] += weight.expert_bytes
    return PredictedBytes(by_class, tuple(experts), embedding_bytes, vectors_bytes)


def _weights(spec: ModelSpec, dtype: Dtype, layout: Layout, linear: LinearWord) -> list[_Weight]:
    """Weights of a model's data file, in file order."""
    embedding = spec.name("embedding")
    embeddings = {embedding, scale_name(embedding)}
    vectors = {name for name, tensor in spec.tensors.items() if tensor.role in VECTOR_ROLES}
    weights = []
    for value in build_decoder(spec, dtype, None, layout, linear).graph.initializers.values():
        if not is_outside(value):
            continue
        assert value.const_value is not None
        meta, size_bytes = value.meta, value.const_value.nbytes
        of_experts = meta.get(OWNER_KEY) == "experts"
        weights.append(
            _Weight(
                meta.get(LAYER_KEY),
                size_bytes,
                meta.get(SHARES_KEY, {meta.get(CLASS_KEY, CONSTANTS): size_bytes}),
                meta.get(EXPERT_BYTES_KEY, size_bytes) if of_experts else 0,
                size_bytes if value.name in embeddings else 0,
                size_bytes if value.name in vectors else 0,
            )
        )
    return weights


def _in_file_order(
    weights: Sequence[_Weight], kinds: Sequence[int]
) -> Iterator[tuple[_Weight, int | None]]:
    """Weights of a whole model in the order of its data file, each with its layer, if it has one.

    Args:
        weights: Weights of one layer of each kind, and those outside the layers.
        kinds: Built layer that each layer is like.
    """
    before: list[_Weight] = []
    after: list[_Weight] = []
    blocks: list[list[_Weight]] = [[] for _ in set(kinds)]
    for weight in weights:
        outside = after if blocks[0] else before
        (outside if weight.layer is None else blocks[weight.layer]).append(weight)
    yield from ((weight, None) for weight in before)
    for layer, kind in enumerate(kinds):
        yield from ((weight, layer) for weight in blocks[kind])
    yield from ((weight, None) for weight in after)
