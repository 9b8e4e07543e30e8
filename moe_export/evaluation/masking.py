"""Scores of a model in which some expert dimensions are masked, that is, set to zero.

Legend: T tokens, V vocabulary, D hidden, W width of an expert, P kept positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
def masked(
    model: PreTrainedModel,
    kept: KeptPositions,
    refitted: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
) -> Iterator[None]:
    """Masks every dimension that is not kept, by zeroing its column of `down`, in a `with` block.

    The logits are then equal to those of the model without these dimensions.

    Args:
        model: Model to mask.
        kept: Positions that are not masked.
        refitted: Columns [D, P] that replace the kept ones, by name of the tensor.
    """
    saved = []
    for block in (module for module in model.modules() if isinstance(module, RaggedMoEBlock)):
        positions_by_expert = kept[block.layer]
        has_shared = len(positions_by_expert) > len(block.routed)
        experts = block.all_experts if has_shared else block.routed
        for number, (expert, positions) in enumerate(
            zip(experts, positions_by_expert, strict=True)
        ):
            weight = expert.down.weight
            saved.append((weight, weight.detach().clone()))
            columns = refitted.get(down_name(block, number))
            put_columns(weight, torch.from_numpy(positions), columns)
    try:
        yield
    finally:
        for weight, values in saved:
            weight.copy_(values)


def down_name(block: RaggedMoEBlock, expert: int) -> str:
    """Name of the tensor of an expert's `down`; the shared expert's number is after the last."""
    spec, layer = block.spec, block.layer
    if expert == spec.num_experts:
        return spec.name("shared_down", layer)
    return spec.name("down", layer, expert)


def put_columns(down_DW: Tensor, kept_P: Tensor, columns_DP: NDArray[np.float32] | None) -> None:
    """Zeroes all columns but those kept, which are replaced if there are others.

    Args:
        down_DW: Weights of `down`, which are changed.
        kept_P: Positions that are kept, int64.
        columns_DP: Other columns for these positions; None to leave them.
    """
    kept_DP = down_DW[:, kept_P] if columns_DP is None else torch.from_numpy(columns_DP)
    down_DW[:] = torch.zeros_like(down_DW).index_copy(1, kept_P, kept_DP.to(down_DW.dtype))


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
