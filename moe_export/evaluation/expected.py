"""Reference logits by torch, with one layer of the model in memory at a time.

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
    """Writes the logits of sequences, and counts generated tokens that torch agrees with.

    Args:
        checkpoint: Checkpoint of a known family, pruned and quantized or not; run in float32.
        sequences: Token ids of each sequence.
        continued: Pairs of a prompt and the tokens that another model generated after it.
        file: Binary file that receives the logits of every sequence in order, float32 [T, V].
        trace: True if the outputs of all layers for the first sequence are returned.

    Returns:
        Number of generated tokens before the first that differs, summed over `continued`; and the
        outputs [T, D] of the layers, empty without `trace`.
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
