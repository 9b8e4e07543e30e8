"""Sections of `report.json` about the model and its plan.

A *row* is an intermediate dimension of an expert; the *width* of an expert is its number of rows.
"""

from __future__ import annotations

from moe_export.artifacts.base import Record


class Parameters(Record):
    """Number of parameters.

    Attributes:
        before: number in the unpruned model.
        after: number in the pruned model.
    """

    before: int
    after: int


class ActiveParameters(Record):
    """Number of parameters that a token is multiplied with, mean over the calibration tokens.

    Attributes:
        before: number in the unpruned model; None without routed tokens.
        after: number in the pruned model; None without routed tokens.
    """

    before: float | None
    after: float | None


class ModelFacts(Record):
    """Sizes of the model.

    Attributes:
        family: `model_type` of the source.
        layers: number of decoder layers.
        experts_per_layer: number of routed experts of a layer.
        experts_per_token: number of routed experts that a token is sent to.
        experts_per_token_before: the same number in the unpruned model; None in files of older
            versions.
        hidden_size: number of elements of the residual stream.
        vocabulary_tokens: size of the vocabulary.
        parameters: number of parameters.
        active_parameters_per_token: parameters outside the routed experts, embeddings included, and
            those of the experts that a token is sent to.
    """

    family: str
    layers: int
    experts_per_layer: int
    experts_per_token: int
    experts_per_token_before: int | None = None
    hidden_size: int
    vocabulary_tokens: int
    parameters: Parameters
    active_parameters_per_token: ActiveParameters


class LayerWidths(Record):
    """Plan of a layer with experts.

    Attributes:
        layer: number of the layer, from 0.
        rows_before: number of rows of the unpruned layer.
        rows_after: number of rows of the pruned layer.
        importance_kept: fraction of the layer's known importance that is kept; None if it is all 0.
        width_min: least width, rows.
        width_median: median width, rows.
        width_max: greatest width, rows.
        widths: width of each routed expert of the pruned layer, rows.
        widths_before: width of each routed expert of the unpruned layer, rows.
        shared_width: width of the shared expert of the pruned layer, rows; None without one.
        shared_width_before: width of the shared expert of the unpruned layer, rows; None without
            one.
        tokens_per_expert: number of calibration tokens routed to each expert.
        unknown_experts: numbers of the experts that no calibration token was routed to.
    """

    layer: int
    rows_before: int
    rows_after: int
    importance_kept: float | None
    width_min: int
    width_median: int | float
    width_max: int
    widths: tuple[int, ...]
    widths_before: tuple[int, ...]
    shared_width: int | None
    shared_width_before: int | None
    tokens_per_expert: tuple[int, ...]
    unknown_experts: tuple[int, ...]


class PlanFacts(Record):
    """Plan of the model.

    Attributes:
        score: name of the ranking's score.
        scope: range of the ranking, `model`, `layer` or `expert`.
        unit: unit of removal, `dimension` or `expert`.
        shared_expert: treatment of the expert that every token takes, `keep` or `prune`; None
            without one.
        kept: fraction of rows that are kept.
        rows_before: number of rows of the unpruned model.
        rows_after: number of rows of the pruned model.
        width_min: least width, rows.
        width_median: median width, rows.
        width_max: greatest width, rows.
        empty_experts: number of routed experts of width 0.
        whole_experts: number of routed experts that keep all their rows.
        layers: plan of each layer with experts.
    """

    score: str
    scope: str
    unit: str
    shared_expert: str | None
    kept: float
    rows_before: int
    rows_after: int
    width_min: int
    width_median: int | float
    width_max: int
    empty_experts: int
    whole_experts: int
    layers: tuple[LayerWidths, ...]

    @property
    def prunes_shared(self) -> bool:
        """True if the shared expert is pruned."""
        return self.shared_expert == "prune"

    @property
    def most_width(self) -> int:
        """Greatest width of an expert of the unpruned model, rows."""
        return max(max(layer.widths_before) for layer in self.layers)


class CurvePoint(Record):
    """Point of the cumulative importance.

    Attributes:
        rows: fraction of the rows with known importance, the most important first.
        importance: fraction of the importance that these rows hold.
    """

    rows: float
    importance: float


class ImportanceFacts(Record):
    """Concentration of importance over the rows where it is known.

    Attributes:
        known_rows: number of rows with known importance.
        rows_kept: fraction of these rows that is kept; None if all importance is 0.
        importance_kept: fraction of their importance that is kept; None if it is all 0.
        curve: points of the cumulative importance; empty if it is all 0.
        source_shares: share of each source of the calibration set in the importance of all rows,
            in the recipe's order; empty if the ranking reads no data.
    """

    known_rows: int
    rows_kept: float | None
    importance_kept: float | None
    curve: tuple[CurvePoint, ...]
    source_shares: tuple[float, ...]


class CoverageFacts(Record):
    """Reach of the calibration.

    Attributes:
        experts: number of routed experts of all layers.
        unknown_experts: number of experts without a calibration token.
        tokens_per_expert_min: number of tokens of the expert with the fewest.
        tokens_per_expert_median: median number of tokens of an expert.
        tokens_per_expert_max: number of tokens of the expert with the most.
    """

    experts: int
    unknown_experts: int
    tokens_per_expert_min: int
    tokens_per_expert_median: int | float
    tokens_per_expert_max: int
