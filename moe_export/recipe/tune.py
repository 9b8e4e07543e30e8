"""The section that trains the model, before all stages that look at it or after pruning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moe_export.recipe.base import (
    MOST,
    Count,
    DocumentCount,
    Factor,
    Fraction,
    Section,
    Seed,
    Share,
)
from moe_export.recipe.calibrate import Source

TuneMethod = Literal["full", "frozen_router", "esft", "dense_mixer"]


class EsftSettings(Section):
    """Choice of the experts that `method: esft` trains.

    Attributes:
        score: `token`, the share of a layer's choices that fell on an expert, or `gate`, its share
            of the routing weights.
        share: Sum of the scores of the chosen experts of a layer, from the highest down.
    """

    score: Literal["token", "gate"] = "token"
    share: Share = 0.2


class TuneSettings(Section):
    """Training of the model on documents of its own, in float32 with AdamW.

    A share of the documents is held out. If the loss on them is no lower afterwards, the run stops.
    No balance loss is ever added.

    Attributes:
        method: Weights that are trained: `full` all of them, `frozen_router` all but the routers,
            `esft` the experts that the documents use most (https://arxiv.org/abs/2407.01906) and
            nothing else, `dense_mixer` all of them with gradients of the routers from all experts,
            for routers with a softmax over all.
        after: `prune` to train the pruned model, so that it recovers; unless given, the source is
            trained, and all other stages take the tuned model in its place.
        sources: Origins of the documents; `weight` is a source's share of them.
        documents: Number of documents that are drawn from all sources together.
        held_out: Share of each source's documents on which the model is judged, one at least.
        epochs: Passes over the documents; 1 unless `steps` is given.
        steps: Steps, in place of epochs.
        sequence_length: Tokens of a row. Whole documents are packed into rows; each is blind to the
            others, and its positions begin at 0. In a model with windows of attention or with
            states every document has a row of its own.
        batch_tokens: Tokens of a step, padding included: whole rows, one at least.
        learning_rate: Largest learning rate.
        schedule: Course of the rate after the warm-up: `cosine` to zero, or `constant`.
        warmup: Share of the steps in which the rate rises linearly.
        weight_decay: Decay of AdamW.
        prompt_weight: Weight of a token of a prompt in the loss; that of other tokens is 1.
        objective: `next_token`, or `distill`, the divergence from the source with all its experts
            per token, which needs no right answers.
        seed: Seed of the draw and of the order of documents.
        esft: Choice of experts, for that method alone.
        top_k: Experts per token; follows `plan.top_k` and may not be given.
    """

    method: TuneMethod
    after: Literal["prune"] | None = None
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    documents: DocumentCount = 2000
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.05
    epochs: Count | None = None
    steps: Count | None = None
    sequence_length: Annotated[int, Field(ge=2, le=MOST)] = 512
    batch_tokens: Count = 4096
    learning_rate: Factor = 1e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: Fraction = 0.03
    weight_decay: Fraction = 0.0
    prompt_weight: Fraction = 1.0
    objective: Literal["next_token", "distill"] = "next_token"
    seed: Seed = 0
    esft: EsftSettings | None = None
    top_k: Count | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TuneSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _sections_of_the_method(self) -> TuneSettings:
        for method in ("esft",):
            if getattr(self, method) is not None and self.method != method:
                raise ValueError(
                    f"the section {method} is for method {method}, and method is {self.method}; "
                    "leave one of them out"
                )
        return self

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return max(1, self.batch_tokens // self.sequence_length)

    @property
    def choice(self) -> EsftSettings:
        """Choice of experts of `esft`."""
        return self.esft or EsftSettings()
