"""Bytes of the weights of an exported model."""

from __future__ import annotations

from moe_export.artifacts.base import Record


class WeightBytes(Record):
    """Bytes of one `model.onnx.data`.

    Attributes:
        total_bytes: size of the file.
        by_class: bytes of each class of tensors, then of `scales` (with zero points), `constants`
            and `padding`.
        experts_by_layer: bytes of the routed experts of each layer, with their scales.
    """

    total_bytes: int
    by_class: dict[str, int]
    experts_by_layer: tuple[int, ...]


class PlannedBytes(WeightBytes):
    """Bytes that a plan predicts of one exported model.

    Attributes:
        active_bytes_per_token: bytes of weights that a token reads, mean over the calibration set.
    """

    active_bytes_per_token: int
