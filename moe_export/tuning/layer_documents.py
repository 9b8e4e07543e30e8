"""Documents of a tuning that goes layer by layer, as numbered batches with weights.

Legend: B documents of a batch, L positions, T positions that have a next token.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moe_export.documents.tokens import TokenSequence
from moe_export.passes.batches import Batch, batches_of
from moe_export.recipe import TuneSettings
from moe_export.tuning.draw import TuningSet

Numbers = tuple[int, ...]
"""Numbers of batches."""


@dataclass(frozen=True)
class LayerDocuments:
    """Batches that go through the layers.

    Attributes:
        batches: Batches by number.
        weights: Weight of each position that has a next token, float32 [T], by number of its batch.
        training: Batches of each step; more steps begin again with the first.
        held_out: Held-out batches of each source.
        steps: Number of steps in each layer.
        documents: Number of documents of the steps, each as often as it is used.
    """

    batches: dict[int, Batch]
    weights: dict[int, Tensor]
    training: tuple[Numbers, ...]
    held_out: tuple[Numbers, ...]
    steps: int
    documents: int

    @property
    def judged(self) -> Numbers:
        """Held-out batches of all sources."""
        return tuple(number for numbers in self.held_out for number in numbers)

    def tokens(self) -> int:
        """Tokens of the steps that have a next token, each as often as it is used."""
        return sum(len(self.weights[number]) for number in self._used())

    def positions(self) -> int:
        """Positions of the steps, padding included."""
        return sum(self.batches[number].tokens_BL.numel() for number in self._used())

    def of_step(self, number: int) -> Numbers:
        """Batches of a step."""
        return self.training[number % len(self.training)]

    def _used(self) -> Iterator[int]:
        for number in range(self.steps):
            yield from self.of_step(number)


def layer_documents(sets: Sequence[TuningSet], settings: TuneSettings) -> LayerDocuments:
    """Batches of the documents of all sources, in a random order, and of those held out.

    Documents that no step would use are left out.

    Args:
        sets: Documents of each source.
        settings: Settings of the section.
    """
    groups = _groups([d for each in sets for d in each.training], settings)
    steps = settings.steps or (settings.epochs or 1) * len(groups)
    groups = groups[:steps]
    batches: dict[int, Batch] = {}
    weights: dict[int, Tensor] = {}

    def numbered(documents: Sequence[TokenSequence]) -> Numbers:
        tokens = [np.array(document.tokens, np.int32) for document in documents]
        first = len(batches)
        for batch in batches_of(tokens, settings.batch_tokens):
            weights[len(batches)] = _weights(batch, documents, settings.prompt_weight)
            batches[len(batches)] = batch
        return tuple(range(first, len(batches)))

    training = tuple(numbered(group) for group in groups)
    held_out = tuple(numbered(each.held_out) for each in sets)
    documents = sum(len(groups[number % len(groups)]) for number in range(steps))
    return LayerDocuments(batches, weights, training, held_out, steps, documents)


def _groups(
    documents: Sequence[TokenSequence], settings: TuneSettings
) -> list[list[TokenSequence]]:
    """Documents of each step, at most `batch_tokens` tokens or a single one."""
    order = list(documents)
    random.Random(f"tune {settings.seed}").shuffle(order)
    groups: list[list[TokenSequence]] = []
    room = 0
    for document in order:
        if not groups or len(document.tokens) > room:
            groups.append([])
            room = settings.batch_tokens
        groups[-1].append(document)
        room -= len(document.tokens)
    return groups


def _weights(batch: Batch, documents: Sequence[TokenSequence], prompt_weight: float) -> Tensor:
    prompt_B1 = torch.tensor([documents[d].prompt_tokens for d in batch.index_B.tolist()])[:, None]
    position_1L = torch.arange(batch.tokens_BL.shape[1])[None]
    weight_BL = torch.where(position_1L < prompt_B1 - 1, prompt_weight, 1.0)
    return weight_BL.reshape(-1)[batch.target_T]
