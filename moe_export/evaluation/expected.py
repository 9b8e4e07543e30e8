"""What torch says of tokens, one layer of the model in memory at a time.

Legend: T tokens, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.evaluation.tally import row_chunks
from moe_export.torch_model.layered import StreamedModel


def write_logits(
    checkpoint: Path,
    sequences: Sequence[list[int]],
    continued: Sequence[tuple[list[int], list[int]]],
    file: IO[bytes],
    *,
    trace: bool = False,
) -> tuple[int, list[NDArray[np.float32]]]:
    """Writes the logits of sequences, and counts the tokens that torch would have generated too.

    Args:
        checkpoint: of a known family, pruned and quantized or not; taken in float32.
        sequences: token ids.
        continued: prompts, and what another model generated after each.
        file: takes float32 [T, V] of every sequence, one after the other.
        trace: whether to keep what every layer gives for the first sequence.

    Returns:
        The number of tokens up to the first that differs, over all of `continued`; and, if asked
        for, the output [T, D] of every layer.
    """
    whole = [[*prompt, *tokens] for prompt, tokens in continued]
    model = StreamedModel(checkpoint, torch.float32)
    traced: list[NDArray[np.float32]] = []
    states = []
    for states in model.states([torch.tensor([tokens]) for tokens in [*sequences, *whole]]):
        if trace:
            traced.append(states[0][0].numpy())
    same = 0
    with model.head() as (norm, head), torch.no_grad():
        for state in states[: len(sequences)]:
            hidden_TD = norm(state[0])
            for rows in row_chunks(len(hidden_TD), model.config.vocab_size):
                head(hidden_TD[rows]).numpy().tofile(file)
        for (prompt, tokens), state in zip(continued, states[len(sequences) :], strict=True):
            likeliest = head(norm(state[0, len(prompt) - 1 : -1])).argmax(-1).tolist()
            differs = [a != b for a, b in zip(tokens, likeliest, strict=True)]
            same += differs.index(True) if any(differs) else len(tokens)
    return same, traced[1:]
