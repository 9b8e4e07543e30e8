"""Scores of a model in which some expert dimensions are masked, that is, set to zero.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.validation import TaskScores
from moe_export.documents.tokens import TokenSequence
from moe_export.evaluation.choices import right_choices
from moe_export.evaluation.tally import Tally, batches, tally_document
from moe_export.torch_model.block import RaggedMoEBlock

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KeptPositions = Sequence[Sequence[NDArray[np.int64]]]
"""Positions that are not masked, by layer and expert; the shared expert, if included, is last."""


@dataclass(frozen=True)
class ScoredTask:
    """Documents of a task to score.

    Attributes:
        has_answers: True if the documents have answers that can match exactly.
        sequences: Tokens of each document.
    """

    has_answers: bool
    sequences: Sequence[TokenSequence]


@contextmanager
def masked(model: PreTrainedModel, kept: KeptPositions) -> Iterator[None]:
    """Masks every dimension that is not kept, by zeroing its column of `down`, in a `with` block.

    The logits are then equal to those of the model without these dimensions.
    """
    saved = []
    for block in (module for module in model.modules() if isinstance(module, RaggedMoEBlock)):
        positions_by_expert = kept[block.layer]
        has_shared = len(positions_by_expert) > len(block.routed)
        experts = block.all_experts if has_shared else block.routed
        for expert, positions in zip(experts, positions_by_expert, strict=True):
            weight = expert.down.weight
            saved.append((weight, weight.detach().clone()))
            mask = torch.zeros(weight.shape[1])
            mask[torch.from_numpy(positions)] = 1
            weight.mul_(mask)
    try:
        yield
    finally:
        for weight, values in saved:
            weight.copy_(values)


def score_tasks(
    model: PreTrainedModel,
    tasks: Mapping[str, ScoredTask],
    reference: PreTrainedModel | None = None,
) -> dict[str, TaskScores]:
    """Scores every task, with the divergence from the reference model if one is given.

    `evaluation.tally` documents the scores.
    """
    return {name: tally.scores() for name, tally in tally_tasks(model, tasks, reference).items()}


def tally_tasks(
    model: PreTrainedModel,
    tasks: Mapping[str, ScoredTask],
    reference: PreTrainedModel | None = None,
) -> dict[str, Tally]:
    """Tallies every task; `score_tasks` summarizes the tallies."""
    tallies = {}
    for name, task in tasks.items():
        tally = Tally(task.has_answers)
        for batch in batches(task.sequences, model.config.vocab_size):
            logits = _logits(model, batch)
            others = _logits(reference, batch) if reference else [None] * len(batch)
            for sequence, ours, theirs in zip(batch, logits, others, strict=True):
                tally_document(tally, sequence, ours, theirs)
        if all(sequence.alternatives for sequence in task.sequences):
            ordered = [s for b in batches(task.sequences, model.config.vocab_size) for s in b]
            tally.choices_by_document = right_choices(
                partial(_logits, model), ordered, model.config.vocab_size
            )
        tallies[name] = tally
    return tallies


def _logits(
    model: PreTrainedModel, sequences: Sequence[TokenSequence]
) -> list[NDArray[np.float32]]:
    """Logits of each sequence at every position, float32 [T, V]."""
    # Padding on the right needs no mask: no position sees a later one.
    ids = torch.zeros((len(sequences), max(len(s.tokens) for s in sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.tokens)] = torch.tensor(sequence.tokens)
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits.numpy()
    return [logits[row, : len(sequence.tokens)] for row, sequence in enumerate(sequences)]
