"""Padded batches of sequences of unequal length.

Legend: B sequences of a batch, L its longest length, T = B * L positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right; arrays with the suffix T are flattened.

    Under causal attention no real token sees the padding, so that no attention mask is needed.

    Attributes:
        index_B: Number of each sequence in the list that the batches were made of, int64.
        tokens_BL: Token ids, int64; 0 for padding.
        real_T: True at real tokens, bool.
        sequence_T: Row of each position, int64.
        target_T: True at positions that have a next token, bool.
        gold_T: Next token of the positions in `target_T` only, int64.
        weight_T: 1 / (number of targets of the sequence) for the same positions, float32.
    """

    index_B: Tensor
    tokens_BL: Tensor
    real_T: Tensor
    sequence_T: Tensor
    target_T: Tensor
    gold_T: Tensor
    weight_T: Tensor


def batches_of(sequences: list[NDArray[np.int32]], batch_tokens: int) -> list[Batch]:
    """Batches of sequences of similar length, the longest first.

    A batch has at most `batch_tokens` positions, padding included, or a single sequence.
    """
    order = sorted(range(len(sequences)), key=lambda s: -len(sequences[s]))
    groups: list[list[int]] = []
    for s in order:
        if groups and (len(groups[-1]) + 1) * len(sequences[groups[-1][0]]) <= batch_tokens:
            groups[-1].append(s)
        else:
            groups.append([s])
    return [_pad(sequences, group) for group in groups]


def _pad(sequences: list[NDArray[np.int32]], index: list[int]) -> Batch:
    row = [sequences[s] for s in index]
    length_B1 = torch.tensor([len(sequence) for sequence in row])[:, None]
    longest = int(length_B1.max())
    tokens_BL = torch.zeros(len(row), longest, dtype=torch.int64)
    for tokens_L, sequence in zip(tokens_BL, row, strict=True):
        tokens_L[: len(sequence)] = torch.from_numpy(sequence.astype(np.int64))
    position_1L = torch.arange(longest)[None]
    target_T = (position_1L < length_B1 - 1).reshape(-1)
    weight_B1 = 1 / (length_B1 - 1).float()
    return Batch(
        index_B=torch.tensor(index),
        tokens_BL=tokens_BL,
        real_T=(position_1L < length_B1).reshape(-1),
        sequence_T=torch.arange(len(row)).repeat_interleave(longest),
        target_T=target_T,
        gold_T=tokens_BL.roll(-1, dims=1).reshape(-1)[target_T],
        weight_T=weight_B1.expand(-1, longest).reshape(-1)[target_T],
    )
