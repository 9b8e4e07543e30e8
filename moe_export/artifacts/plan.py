"""The plan: a width for every expert, and the bytes of the models that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from moe_export.artifacts.base import JsonArtifact, Record
from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.weight_bytes import PlannedBytes
from moe_export.families.axis import Axis
from moe_export.families.base import ModelSpec
from moe_export.recipe import Dtype
from moe_export.variants import BASELINE, PRUNED, QUANTIZED


class PlannedModels(Record):
    """Bytes of the models of one run, in one dtype.

    Attributes:
        before: bytes of the unpruned model.
        after: bytes of the pruned model.
        quantized: bytes of the pruned and quantized model; None if nothing is quantized.
        before_quantized: bytes of the unpruned model in the same formats; None likewise.
    """

    before: PlannedBytes
    after: PlannedBytes
    quantized: PlannedBytes | None = None
    before_quantized: PlannedBytes | None = None

    def of(self, variant: str) -> PlannedBytes | None:
        """Returns the bytes of an exported variant; None if the plan does not have it."""
        return self.by_variant().get(variant)

    def by_variant(self) -> dict[str, PlannedBytes]:
        """Returns the bytes of every variant that the run can export, in order."""
        planned = {BASELINE: self.before, PRUNED: self.after}
        return planned if self.quantized is None else planned | {QUANTIZED: self.quantized}


class PlanLayer(Record):
    """The plan of one layer. All lists are empty in a layer without experts.

    Attributes:
        layer: number of the layer.
        widths: planned width of each routed expert.
        rows_before: dimensions that are ranked, the shared expert's included if it is pruned.
        rows_after: dimensions that are kept of them.
        importance_kept: fraction of the layer's known importance that is kept; None if it is 0.
        unknown_experts: experts that no calibration token reached.
        shared_width: planned width of the shared expert; None if it is not pruned.
        shared_width_before: width of the shared expert before; None if it is not pruned.
        expert_bytes: bytes of the layer's routed experts in the exported pruned model, by dtype.
    """

    layer: int
    widths: tuple[int, ...]
    rows_before: int
    rows_after: int
    importance_kept: float | None
    unknown_experts: tuple[int, ...]
    shared_width: int | None = None
    shared_width_before: int | None = None
    expert_bytes: dict[Dtype, int]


class Plan(JsonArtifact):
    """The plan of a model, made by the plan stage.

    Attributes:
        shared_expert: `prune` if the shared expert is pruned too; else None.
        top_k: experts per token of the pruned model; None if they are the source's.
        top_k_before: experts per token of the source; None likewise.
        score: name of the importance score that dimensions are ranked by.
        scope: set of dimensions that are ranked together: the model, a layer or an expert.
        unit: piece that is removed as a whole: a dimension or an expert.
        rows_before: dimensions that are ranked, in all layers.
        rows_after: dimensions that are kept of them.
        kept: `rows_after / rows_before`, 0 to 1.
        widths_before: width of each routed expert before, one list per layer.
        layers: the plan of each layer, in order.
        checkpoint_tensor_bytes: bytes of all tensors of the pruned checkpoint.
        export_bytes: predicted bytes of the exported models, by dtype.
        predicted_loss: loss in nats per token that the solver predicts; None if no solver ran.
        quantization: formats of the quantized model; None if nothing is quantized.
    """

    FILE = "plan.json"

    shared_expert: Literal["prune"] | None = None
    top_k: int | None = None
    top_k_before: int | None = None
    score: str
    scope: Literal["model", "layer", "expert"]
    unit: Literal["dimension", "expert"]
    rows_before: int
    rows_after: int
    kept: float
    widths_before: tuple[tuple[int, ...], ...]
    layers: tuple[PlanLayer, ...]
    checkpoint_tensor_bytes: int
    export_bytes: dict[Dtype, PlannedModels]
    predicted_loss: float | None
    quantization: TensorFormats | None = None

    @property
    def prunes_shared(self) -> bool:
        """True if the shared expert's dimensions are among those that are ranked."""
        return self.shared_expert is not None

    @property
    def axis_widths_before(self) -> list[list[int]]:
        """Widths before along axis R, one list per layer: routed experts, then the shared one if
        it is pruned.
        """
        pairs = zip(self.widths_before, self.layers, strict=True)
        return [_on_axis(widths, layer.shared_width_before) for widths, layer in pairs]

    @property
    def axis_widths_after(self) -> list[list[int]]:
        """Planned widths along axis R, in the order of `axis_widths_before`."""
        return [_on_axis(layer.widths, layer.shared_width) for layer in self.layers]

    def bytes_of(self, variant: str, dtype: Dtype) -> PlannedBytes | None:
        """Returns the bytes of an exported variant; None if the plan does not have it."""
        models = self.export_bytes.get(dtype)
        return models.of(variant) if models else None

    def axis_of(self, spec: ModelSpec) -> Axis:
        """Returns the experts of a model that the plan ranks, with the plan's experts per token."""
        return Axis(spec, self.prunes_shared).routed_to(self.top_k)

    def unpruned(self, pruned: ModelSpec) -> ModelSpec:
        """Returns the spec of the model that the plan was made for, given that of the pruned."""
        spec = self.axis_of(pruned).resized(self.axis_widths_before).spec
        return spec if self.top_k_before is None else replace(spec, top_k=self.top_k_before)


def _on_axis(routed: Sequence[int], shared: int | None) -> list[int]:
    return list(routed) if shared is None else [*routed, shared]
