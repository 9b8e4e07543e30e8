"""The plan's section: a budget, and the ranking that spends it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from moe_export.op.spec import Dtype, Layout, LinearWord
from moe_export.recipe.base import MOST, ByteSize, Count, Section, Share
from moe_export.recipe.importance import AUTO, RankingScore
from moe_export.recipe.quantize import Formats


class PlanSettings(Section):
    """The budget that experts are pruned to, and the ranking that decides what is kept.

    `keep`, `speedup`, `target_bytes` or `target_active_bytes` gives the budget; `target_bytes` may
    stand beside `speedup` or `target_active_bytes`, and then both limits are kept.

    Attributes:
        keep: Share of all expert dimensions that is kept.
        target_bytes: Size of the exported weights.
        target_active_bytes: Bytes of the exported weights that a token reads, mean over the
            calibration set.
        speedup: Number of times that the pruned model decodes as fast as the unpruned one in the
            same formats, as predicted from the bytes of weights that a token reads. Dimensions are
            ranked by importance per byte read.
        dtype: Dtype that byte budgets count weights in; the export's unless given.
        formats: Formats that byte budgets count; those of the quantize section, and may not be
            given.
        layout: Layout that byte budgets count; the export's, and may not be given.
        linear: Nodes of the matrices outside the experts; the export's, and may not be given.
        score: Score that ranks dimensions; `auto` measures several on held-out sequences and takes
            the best, see the ranking section. Unless given, it is `auto`; with `scope`, `unit` or
            `quantize.experts: auto` it is `fisher_margin`.
        scope: `model` ranks all dimensions together, `layer` within each layer, `expert` gives
            every expert the same width.
        unit: `dimension`, or `expert`, which keeps or empties whole experts (for comparison).
        min_width: Dimensions that every expert keeps.
        multiple_of: Dimensions of an expert that are kept or removed together.
        unknown: Fate of experts that no calibration token reached: kept first, or pruned first.
        shared_expert: `keep` leaves the expert that every token takes whole; `prune` scores, ranks
            and budgets its dimensions together with those of the routed experts. Every token reads
            it. `auto` prunes it if the model has one, and is the default beside `speedup`.
        top_k: Experts per token of the pruned model, at most the source's; the source's unless
            given. Scores are computed with it, and weights are normalized over it where the family
            normalizes them.
    """

    keep: Share | None = None
    target_bytes: ByteSize | None = None
    target_active_bytes: ByteSize | None = None
    speedup: Annotated[float, Field(gt=1, le=100)] | None = None
    dtype: Dtype | None = None
    formats: Formats | None = None
    layout: Layout | None = None
    linear: LinearWord | None = None
    score: RankingScore = "fisher_margin"
    scope: Literal["model", "layer", "expert"] = "model"
    unit: Literal["dimension", "expert"] = "dimension"
    min_width: Annotated[int, Field(ge=0, le=MOST)] = 0
    multiple_of: Count = 1
    unknown: Literal["keep", "prune"] = "keep"
    shared_expert: Literal["keep", "prune", "auto"] = "keep"
    top_k: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _shared_expert_of_a_speed_goal(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("speedup") is None:
            return data
        ranked = data.get("score") != "router_frequency"
        return {"shared_expert": "auto" if ranked else "keep"} | data

    @model_validator(mode="after")
    def _one_budget(self) -> PlanSettings:
        others = (self.keep, self.speedup, self.target_active_bytes)
        given = sum(budget is not None for budget in others)
        stored = self.target_bytes is not None
        if given > 1 or not (given or stored) or (stored and self.keep is not None):
            raise ValueError(
                "give one of keep, speedup, target_bytes and target_active_bytes; only "
                "target_bytes may stand beside speedup or target_active_bytes"
            )
        if self.is_solved and (self.scope != "model" or self.unit != "dimension"):
            raise ValueError(
                "a budget of active bytes, or one that chooses formats, ranks dimensions over the "
                "whole model; leave scope and unit out"
            )
        return self

    @model_validator(mode="after")
    def _shared_expert_is_ranked(self) -> PlanSettings:
        if self.prunes_shared and self.score == "router_frequency":
            raise ValueError(
                "score router_frequency counts what the router sends, which the shared expert gets "
                "without being chosen; take another score, or leave shared_expert out"
            )
        return self

    @model_validator(mode="after")
    def _scope_is_chosen(self) -> PlanSettings:
        if self.score == AUTO and self.scope != "model":
            raise ValueError(
                "score auto chooses the scope as well; leave plan.scope out, or give ranking.scopes"
            )
        return self

    @property
    def prunes_shared(self) -> bool:
        """True if the shared expert's dimensions, if there are any, are ranked with the others."""
        return self.shared_expert != "keep"

    def prunes_shared_of(self, has_shared: bool) -> bool:
        """True if the shared expert of a model is pruned, or is asked for where there is none."""
        return self.prunes_shared and (has_shared or self.shared_expert == "prune")

    @property
    def limits_reading(self) -> bool:
        """True if the bytes that a token reads are limited."""
        return self.speedup is not None or self.target_active_bytes is not None

    @property
    def chooses_formats(self) -> bool:
        """True if the plan chooses the formats of experts."""
        return self.formats is not None and self.formats.is_auto

    @property
    def is_solved(self) -> bool:
        """True if `moe_export.planning.allocation` gives the widths, not the ranking alone."""
        return self.chooses_formats or self.limits_reading
