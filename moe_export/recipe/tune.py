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

TuneMethod = Literal[
    "full", "frozen_router", "esft", "dense_mixer", "condenser", "compressed_experts"
]

EXTENDING = ("condenser", "compressed_experts")
"""Methods that add tensors to the model."""

Only = Literal["vectors", "routers", "vectors_and_routers"]

METHOD_OF_ONLY = {
    "vectors": "compressed_experts",
    "routers": "full",
    "vectors_and_routers": "compressed_experts",
}
"""Method that each word of `only` is for."""


class EsftSettings(Section):
    """Choice of the experts that `method: esft` trains.

    Attributes:
        score: `token`, the share of a layer's choices that fell on an expert, or `gate`, its share
            of the routing weights.
        share: Sum of the scores of the chosen experts of a layer, from the highest down.
    """

    score: Literal["token", "gate"] = "token"
    share: Share = 0.2


class CompressedSettings(Section):
    """Vectors of `method: compressed_experts`, ones at the start.

    Attributes:
        auxiliary: Experts per token that become vectors, the last in the router's order: `half` of
            them, or a number.
        form: Vectors of each: `input` scales the input of the computed experts, `tied` their hidden
            values too, and `three` has one for `gate` and one for `up`, as the paper does.
        vector_rate: Factor of the learning rate for the vectors; at that of the weights they hardly
            move.
    """

    auxiliary: Literal["half"] | Count = "half"
    form: Literal["input", "tied", "three"] = "tied"
    vector_rate: Factor = 20.0


class CondenserSettings(Section):
    """Router bias and condensers of `method: condenser`.

    Attributes:
        count: Experts of a layer that every token gets; 0 for the bias alone.
        budget: `added` to the experts that a token chooses, or `kept`: in place of as many.
        bias_reach: Largest bias: each step moves every bias by this over the number of steps.
        bias_in_weights: False if the bias decides the choice of experts alone.
        choose: Experts that become condensers: those of the `lowest` or the `highest` bias.
        phases: Shares of the steps before and after the condensers are chosen.
    """

    count: Annotated[int, Field(ge=0, le=MOST)] = 2
    budget: Literal["added", "kept"] = "added"
    bias_reach: Factor = 0.4
    bias_in_weights: bool = True
    choose: Literal["lowest", "highest"] = "lowest"
    phases: tuple[Fraction, Fraction] = (0.5, 0.5)

    @model_validator(mode="after")
    def _whole_phases(self) -> CondenserSettings:
        if abs(sum(self.phases) - 1) > 1e-9:
            raise ValueError(
                f"phases are {list(self.phases)}, which sum to {sum(self.phases):g}; expected 1"
            )
        return self


class TuneSettings(Section):
    """Training of the model on documents of its own, in float32 with AdamW.

    A share of the documents is held out. If the loss on them is no lower afterwards, the run stops.
    No balance loss is ever added.

    Attributes:
        method: Weights that are trained: `full` all of them, `frozen_router` all but the routers,
            `esft` the experts that the documents use most (https://arxiv.org/abs/2407.01906) and
            nothing else, `dense_mixer` all of them with gradients of the routers from all experts,
            for routers with a softmax over all; `compressed_experts` all of them and vectors in
            place of the last experts of a token (https://arxiv.org/abs/2503.00634); `condenser` all
            of them, with a bias of the routers and experts that every token gets
            (https://arxiv.org/abs/2604.23036). The last two are for routers with a softmax.
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
        only: Weights that are trained in place of all that the method trains: `vectors` or
            `vectors_and_routers` of `compressed_experts`, or the `routers` of `full`. They are
            trained towards the source's output of every layer with one layer in memory at a time,
            in steps of each layer, for models larger than memory. Needs `objective: distill`.
        seed: Seed of the draw and of the order of documents.
        esft: Choice of experts, for that method alone.
        compressed: Vectors, for `method: compressed_experts` alone.
        condenser: Bias and condensers, for that method alone.
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
    only: Only | None = None
    seed: Seed = 0
    esft: EsftSettings | None = None
    compressed: CompressedSettings | None = None
    condenser: CondenserSettings | None = None
    top_k: Count | None = None

    @model_validator(mode="after")
    def _one_length(self) -> TuneSettings:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self

    @model_validator(mode="after")
    def _sections_of_the_method(self) -> TuneSettings:
        sections = {"esft": "esft", "compressed": "compressed_experts", "condenser": "condenser"}
        for section, method in sections.items():
            if getattr(self, section) is not None and self.method != method:
                raise ValueError(
                    f"the section {section} is for method {method}, and method is {self.method}; "
                    "leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _of_the_source(self) -> TuneSettings:
        if self.after is not None and self.method in EXTENDING:
            raise ValueError(
                f"after: {self.after} is for methods that change weights alone, and method is "
                f"{self.method}, which decides what importance and plan look at; leave after out"
            )
        return self

    @model_validator(mode="after")
    def _layer_by_layer(self) -> TuneSettings:
        if self.only is None:
            return self
        if self.objective != "distill":
            raise ValueError(
                f"only: {self.only} trains each layer towards the source's output, and objective "
                f"is {self.objective}; set objective to distill, or leave only out"
            )
        if self.method != METHOD_OF_ONLY[self.only]:
            raise ValueError(
                f"only: {self.only} is for method {METHOD_OF_ONLY[self.only]}, and method is "
                f"{self.method}; change one of them"
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

    @property
    def vectors(self) -> CompressedSettings:
        """Vectors of `compressed_experts`."""
        return self.compressed or CompressedSettings()

    @property
    def condensers(self) -> CondenserSettings:
        """Bias and condensers of `condenser`."""
        return self.condenser or CondenserSettings()
