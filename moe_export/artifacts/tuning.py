"""`tuning.json`: what tuning trained, and what it gained on held-out documents."""

from __future__ import annotations

from typing import ClassVar, Literal

from moe_export.artifacts.base import JsonArtifact, Record


class TunedSource(Record):
    """One source of documents.

    Attributes:
        name: short name of the source.
        documents: number of documents that were trained on.
        held_out_documents: number of documents that the model was judged on.
        dropped_documents: drawn documents left out, because they are too long or held out too.
        weight: share of the source in the judgement, relative to the others.
        before: mean loss on its held-out documents before, nats per weighted token.
        after: the same loss afterwards.
    """

    name: str
    documents: int
    held_out_documents: int
    dropped_documents: int
    weight: float
    before: float
    after: float


class TunedRouter(Record):
    """Router of one layer that `method: condenser` gave a bias.

    Attributes:
        layer: number of the layer.
        load_before: share of the held-out tokens that each expert got before.
        load_after: the same shares afterwards.
        largest_bias: largest magnitude of a bias.
        condensers: experts that every token gets.
        probabilities: mean probability of each of them, which is its routing weight.
    """

    layer: int
    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    largest_bias: float
    condensers: tuple[int, ...]
    probabilities: tuple[float, ...]


class TunedLayer(Record):
    """Errors of one layer's block, trained towards the source with `tune.only`.

    They are squared distances from the wanted outputs over the squares of these, on held-out
    documents, with errors of tokens divided by the mean square of the layer's output.

    Attributes:
        layer: number of the layer.
        before: error with the weights before.
        after: error afterwards; as before where training did not lower it and was undone.
    """

    layer: int
    before: float
    after: float


class VectorMovement(Record):
    """Mean distance of the entries of trained vectors from 1, where they began.

    Attributes:
        input: movement of the vectors for the input.
        hidden: movement of those for the hidden values; None without them.
        up: movement of those for the input of `up` alone; None without them.
    """

    input: float
    hidden: float | None = None
    up: float | None = None


class Tuning(JsonArtifact):
    """Account of a tuning, made by the tune stage.

    Attributes:
        method: method of training, in the recipe's word.
        objective: goal of the loss, in the recipe's word.
        only: weights that were trained layer by layer, in the recipe's word; None for the method's.
        top_k: experts per token that the routers of the tuned model were made for.
        active_experts: routed experts that are computed for a token, at most.
        steps: number of steps, in each layer if it went layer by layer.
        epochs: passes over the documents, a fraction if steps were given.
        tokens: tokens trained on, padding excluded, each as often as it was.
        padding: share of the positions that were padding.
        losses: loss of each step, nats per weighted token; none if it went layer by layer.
        sources: the sources of documents with their held-out losses.
        before: held-out loss before, the mean over the sources by weight.
        after: the same loss afterwards.
        experts: experts that were trained, one list per layer; None if all were.
        routers: routers that got a bias, one per layer with experts; None without.
        vectors: movement of the vectors of compressed experts; None without.
        layers: errors of each layer with experts; None unless it went layer by layer.
        trained_parameters: number of parameters that were trained.
        changed: names of the tensors that are not those of the model before, or not in it.
        equal: number of tensors that are, byte for byte.
    """

    FILE: ClassVar[str] = "tuning.json"

    method: str
    objective: Literal["next_token", "distill"]
    only: Literal["vectors", "routers", "vectors_and_routers"] | None = None
    top_k: int
    active_experts: int
    steps: int
    epochs: float
    tokens: int
    padding: float
    losses: tuple[float, ...]
    sources: tuple[TunedSource, ...]
    before: float
    after: float
    experts: tuple[tuple[int, ...], ...] | None = None
    routers: tuple[TunedRouter, ...] | None = None
    vectors: VectorMovement | None = None
    layers: tuple[TunedLayer, ...] | None = None
    trained_parameters: int
    changed: tuple[str, ...]
    equal: int
