"""Training of a model that is in memory, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from moe_export.documents.tokens import TokenSequence
from moe_export.errors import CheckpointError
from moe_export.recipe import TuneSettings
from moe_export.torch_model.deterministic import deterministic
from moe_export.tuning.condense import Condensing
from moe_export.tuning.dense_mixer import mixed_densely
from moe_export.tuning.forward import loss_of
from moe_export.tuning.needs import SAVES
from moe_export.tuning.optimizer import adam_of, take_step
from moe_export.tuning.packing import PackedBatch, Packing, batch_of
from moe_export.tuning.state import Losses, load_state, save_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Training:
    """Training of some weights of a model.

    Attributes:
        model: Model in float32, in evaluation mode.
        names: Names of the weights that are trained.
        documents: Documents to train on.
        steps: Documents of each step.
        settings: Settings of the section.
        folder: Folder of the state; an interrupted training resumes from it.
        teacher: Goal of `objective: distill`.
        condensing: Biases and condensers of `method: condenser`.
        tell: Function called before each step with its number.
    """

    model: PreTrainedModel
    names: Sequence[str]
    documents: Sequence[TokenSequence]
    steps: Sequence[Packing]
    settings: TuneSettings
    folder: Path
    teacher: PreTrainedModel | None = None
    condensing: Condensing | None = None
    tell: Callable[[int], None] = lambda _: None
    parameters: dict[str, nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        found = dict(self.model.named_parameters())
        self.parameters = {name: found[name] for name in self.names}
        for parameter in self.parameters.values():
            # Rounding a bfloat16 weight loses every small step.
            assert parameter.dtype == torch.float32

    def run(self) -> Losses:
        """Trains, and returns the loss of each step in nats per weighted token.

        Raises:
            CheckpointError: A loss is not finite.
        """
        self.model.requires_grad_(False)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        adam = adam_of(self.parameters, self.settings)
        losses = load_state(self.folder, self.parameters, adam, self.condensing)
        every = max(1, len(self.steps) // SAVES)
        densely = self.settings.method == "dense_mixer"
        with deterministic(), mixed_densely(self.model) if densely else nullcontext():
            for number in range(len(losses), len(self.steps)):
                self.tell(number)
                losses.append(self._step(number, adam))
                if (number + 1) % every == 0:
                    save_state(self.folder, self.parameters, adam, losses, self.condensing)
        self.model.requires_grad_(False)
        return losses

    def batch(self, number: int) -> PackedBatch:
        """Batch of a step."""
        settings = self.settings
        return batch_of(
            self.steps[number], self.documents, settings.sequence_length, settings.prompt_weight
        )

    def _step(self, number: int, adam: torch.optim.AdamW) -> float:
        batch = self.batch(number)
        weight = float(batch.weight_RL.sum())
        if not weight:
            self._condense(number)
            return 0.0
        with nullcontext() if self.condensing is None else self.condensing.watched(batch):
            loss = loss_of(self.model, batch, self.teacher) / weight
        nats = float(loss.detach())
        if not torch.isfinite(loss):
            raise CheckpointError(
                f"tune: the loss of step {number} is {nats}; lower tune.learning_rate, or look for "
                "weights of the model that are not finite"
            )
        loss.backward()
        trained = list(self.parameters.values())
        take_step(adam, trained, number, len(self.steps), self.settings)
        self._condense(number)
        return nats

    def _condense(self, number: int) -> None:
        if self.condensing is not None:
            self.condensing.step(number)
