"""Reference logits by torch, with one layer of the model in memory at a time.

Legend: T tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_export.evaluation.tally import row_chunks
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.layered import StreamedModel

TIE = 2.0**-20
"""Largest distance of two scores of a choice that are taken as equal, relative to the largest."""


@dataclass
class Trace:
    """Results of torch within the layers.

    Attributes:
        outputs: Output [T, D] of every layer for the first sequence.
        tied_tokens: Number of tokens of all sequences, by layer, for which the last expert that is
            chosen and the first that is not have equal scores.
    """

    outputs: list[NDArray[np.float32]] = field(default_factory=list)
    tied_tokens: dict[int, int] = field(default_factory=dict)


def write_logits(
    checkpoint: Path,
    sequences: Sequence[list[int]],
    continued: Sequence[tuple[list[int], list[int]]],
    file: IO[bytes],
    *,
    trace: bool = False,
) -> tuple[int, Trace]:
    """Writes the logits of sequences, and counts generated tokens that torch agrees with.

    Args:
        checkpoint: Checkpoint of a known family, pruned and quantized or not; run in float32.
        sequences: Token ids of each sequence.
        continued: Pairs of a prompt and the tokens that another model generated after it.
        file: Binary file that receives the logits of every sequence in order, float32 [T, V].
        trace: True if outputs of the layers and ties of the routers are returned.

    Returns:
        Number of generated tokens before the first that differs, summed over `continued`; and the
        trace, empty without `trace`.
    """
    whole = [[*prompt, *tokens] for prompt, tokens in continued]
    model = StreamedModel(checkpoint, torch.float32)
    traced = Trace()
    if trace:
        _count_ties(model, traced.tied_tokens)
    states = []
    for states in model.states([torch.tensor([tokens]) for tokens in [*sequences, *whole]]):
        if trace:
            traced.outputs.append(states[0][0].numpy())
    same = 0
    with model.head() as (norm, head), torch.no_grad():
        for state in states[: len(sequences)]:
            hidden_TD = norm(state[0])
            for rows in row_chunks(len(hidden_TD), model.config.vocab_size):
                # Unlike numpy's tofile, this says that the disk is full.
                file.write(head(hidden_TD[rows]).contiguous().numpy().data)
        for (prompt, tokens), state in zip(continued, states[len(sequences) :], strict=True):
            likeliest = head(norm(state[0, len(prompt) - 1 : -1])).argmax(-1).tolist()
            differs = [a != b for a, b in zip(tokens, likeliest, strict=True)]
            same += differs.index(True) if any(differs) else len(tokens)
    del traced.outputs[:1]  # the embeddings
    return same, traced


def _count_ties(model: StreamedModel, tied_tokens: dict[int, int]) -> None:
    """Lets every router count its ties from now on."""

    def count(block: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        assert isinstance(block, RaggedMoEBlock)
        x_TD = arguments[0].reshape(-1, arguments[0].shape[-1])
        choice_TE, spec = block.choice_scores(x_TD), block.spec
        # The order of compressed experts says which are computed: each neighbour counts.
        first = spec.active_experts if spec.compressed is not None else spec.chosen_experts
        last = min(spec.chosen_experts + 1, choice_TE.shape[1])
        if first == last:
            return
        best_TK = torch.topk(choice_TE, last, dim=-1).values
        largest_T1 = choice_TE.abs().masked_fill(choice_TE.isinf(), 0).amax(-1, keepdim=True)
        gap_TK = best_TK[:, first - 1 : -1] - best_TK[:, first:]
        near = (gap_TK <= TIE * largest_T1).any(-1)
        tied_tokens[block.layer] = tied_tokens.get(block.layer, 0) + int(near.sum())

    for layer in range(len(model.layers)):
        block = model.block(layer)
        if block is not None:
            block.register_forward_pre_hook(count)
