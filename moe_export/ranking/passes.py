"""Held-out sequences that go through the unpruned model, and through pruned forms of it.

The weights of one layer are in memory at a time. A form masks the dimensions that it drops, by
zeroing their columns of `down`, or has columns that were refitted.

Legend: S sequences, K sources, T scored tokens of a batch, P kept dimensions, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moe_export.artifacts.calibration import Calibration
from moe_export.evaluation.masking import down_name, put_columns
from moe_export.passes.batches import Batch, batches_of
from moe_export.passes.carried import BATCH_TOKENS
from moe_export.passes.loss import token_divergences
from moe_export.ranking.candidates import Kept
from moe_export.ranking.means import Divergence
from moe_export.ranking.refits import Columns
from moe_export.torch_model.block import RaggedMoEBlock
from moe_export.torch_model.layered import StreamedModel


@dataclass
class HeldOutPasses:
    """The unpruned model with held-out sequences, on which forms of it are measured.

    Of a sequence with a prompt the tokens after the prompt are scored, of others all but the first.

    Attributes:
        directory: Unpruned checkpoint.
        held_out: The sequences.
        places_S: Numbers of the sequences that are used, int64.
        tell: Function called before each layer.
        top_k: Experts per token of the forms; None for those of the checkpoint.
    """

    directory: Path
    held_out: Calibration
    places_S: NDArray[np.int64]
    tell: Callable[[str], None]
    top_k: int | None = None
    teacher_TD: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.model = StreamedModel(self.directory, torch.float32)
        sequences = self.held_out.sequences()
        self.batches = batches_of([sequences[s] for s in self.places_S], BATCH_TOKENS)
        self._scored_T = [self._scored(batch) for batch in self.batches]
        self._embedded = list(self.model.begin(batch.tokens_BL for batch in self.batches))
        states = self._through({}, None, self.model.spec.top_k)
        with self.model.head() as (norm, _), torch.no_grad():
            self.teacher_TD = [
                norm(state_BLD).flatten(0, 1)[scored_T]
                for state_BLD, scored_T in zip(states, self._scored_T, strict=True)
            ]

    def unpruned(self) -> Divergence:
        """Losses of the unpruned model, whose divergence from itself is zero."""
        return self._divergence(self.teacher_TD)

    def of_form(self, kept: Kept, fits: Iterator[Columns] | None = None) -> Divergence:
        """Divergence of a form of the model from the unpruned one, by sequence.

        Args:
            kept: Dimensions that are not masked; experts that are not named stay whole.
            fits: Refitted columns of each layer in order; None without refitting.
        """
        states = self._through(kept, fits, self.top_k or self.model.spec.top_k)
        with self.model.head() as (norm, _), torch.no_grad():
            hidden_TD = [
                norm(state_BLD).flatten(0, 1)[scored_T]
                for state_BLD, scored_T in zip(states, self._scored_T, strict=True)
            ]
        return self._divergence(hidden_TD)

    def _through(self, kept: Kept, fits: Iterator[Columns] | None, top_k: int) -> list[Tensor]:
        """States [B, L, D] of every batch after the last layer."""
        states = [each.hidden_BLD for each in self._embedded]
        for layer in range(len(self.model.layers)):
            self.tell(f"layer {layer}")
            down = next(fits) if fits is not None else {}
            with self.model.layer(layer), torch.no_grad():
                block = self.model.block(layer)
                if block is not None:
                    block.spec = replace(block.spec, top_k=top_k)
                    self._change(block, kept, down)
                states = [
                    self.model.run(layer, state_BLD, each.calls[layer])
                    for state_BLD, each in zip(states, self._embedded, strict=True)
                ]
        return states

    def _change(self, block: RaggedMoEBlock, kept: Kept, down: Columns) -> None:
        """Masks the experts of a layer, and puts refitted columns in place."""
        for expert, swiglu in enumerate(block.all_experts):
            place = (block.layer, expert)
            if place in kept:
                columns_DP = down.get(down_name(block, expert))
                put_columns(swiglu.down.weight, torch.from_numpy(kept[place]), columns_DP)

    def _scored(self, batch: Batch) -> Tensor:
        """Positions of a batch whose next token is scored, bool."""
        prompt_B = torch.from_numpy(self.held_out.prompt_S[self.places_S[batch.index_B.numpy()]])
        longest = batch.tokens_BL.shape[1]
        is_asked_BL = torch.arange(longest)[None] >= (prompt_B[:, None] - 1)
        return is_asked_BL.reshape(-1) & batch.target_T

    def _divergence(self, hidden_TD: list[Tensor]) -> Divergence:
        number = len(self.places_S)
        kl_S, loss_S, tokens_S = (np.zeros(number) for _ in range(3))
        with self.model.head() as (_, head):
            for batch, scored_T, ours_TD, theirs_TD in zip(
                self.batches, self._scored_T, hidden_TD, self.teacher_TD, strict=True
            ):
                gold_T = batch.gold_T[scored_T[batch.target_T]]
                kl_T, loss_T = token_divergences(ours_TD, theirs_TD, gold_T, head)
                sequence_T = batch.index_B[batch.sequence_T[scored_T]].numpy()
                np.add.at(kl_S, sequence_T, kl_T.numpy())
                np.add.at(loss_S, sequence_T, loss_T.numpy())
                np.add.at(tokens_S, sequence_T, 1)
        source_S = self.held_out.source_S[self.places_S].astype(np.int64)
        return Divergence(kl_S, loss_S, tokens_S, source_S)
