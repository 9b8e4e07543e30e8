"""Router distillation: fits the routers of a pruned model to its changed experts.

Adam (no weight decay, learning rate falling linearly to zero) trains the routers to minimise the
divergence of the pruned model from the unpruned one (`passes.loss.divergence_nats`), after
arXiv:2603.02217. The learning rate is relative to the root mean square of a router's weights,
because Adam moves each weight by about its rate; the paper's 5e-5 is absolute.

The unpruned model runs once. Its last hidden states are stored, since both models have the same
final norm and lm_head.

Legend: E experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CalibrationError, RecipeError
from moe_export.families import open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.fitting.limits import SMALL_MODEL_BYTES
from moe_export.fitting.router_passes import RouterPasses, keep_teacher
from moe_export.passes.batches import Batch, batches_of
from moe_export.passes.carried import BATCH_TOKENS
from moe_export.passes.states import States
from moe_export.system.progress import Progress, silent
from moe_export.torch_model.deterministic import deterministic
from moe_export.torch_model.layered import LayeredModel, StreamedModel
from moe_export.torch_model.load import load_torch_model, to_torch

SEED = 20260302
"""Seed of the order of sequences; any number would do."""

HELD_OUT = 8
"""Number of sequences of which one is held out from training."""


@dataclass(frozen=True)
class Rule:
    """Settings of router distillation, with the names of the recipe's `distill_router`."""

    steps: int
    learning_rate: float
    temperature: float
    tokens_per_step: int


@dataclass(frozen=True)
class Distilled:
    """Result of router distillation.

    Attributes:
        routers: Trained routers by tensor name, float32 [E, D], rounded to the stored dtype.
        tokens: Number of training tokens that have a next token.
        held_out_tokens: Number of held-out tokens that have a next token.
        before_nats: Mean KL from the unpruned model on the held-out tokens, with the old routers.
        after_nats: Mean KL on the same tokens with the trained routers.
    """

    routers: dict[str, NDArray[np.float32]]
    tokens: int
    held_out_tokens: int
    before_nats: float
    after_nats: float

    @property
    def is_better(self) -> bool:
        """True if the trained routers lower the divergence on held-out tokens."""
        return self.after_nats < self.before_nats


def distill_routers(
    teacher: Path,
    student: Path,
    sequences: Sequence[NDArray[np.int32]],
    rule: Rule,
    folder: Path,
    progress: Progress = silent,
) -> Distilled:
    """Trains the routers of a pruned checkpoint.

    Args:
        teacher: Directory of the unpruned checkpoint.
        student: Directory of the pruned checkpoint, which is only read.
        sequences: Token ids of each calibration sequence, int32.
        rule: Settings of the training.
        folder: Folder for states between layers, which may be removed afterwards.
        progress: Function that reports every step.

    Raises:
        RecipeError: The model's routing weights do not depend on its routers.
        CalibrationError: Fewer than two sequences have two tokens or more.
        ResourceError: The disk is too small for the states.
    """
    checkpoint, spec = open_checkpoint(student)
    _check_routing(spec)
    groups = _groups(sequences, rule.tokens_per_step)
    states = States(folder)
    states.check_space(_needed_bytes(groups, spec))
    batches = dict(enumerate(batch for group in groups for batch in group))
    held_out, *training = _numbered(groups)
    routers = _routers(checkpoint, spec)
    with deterministic():
        progress(0, rule.steps + 1, "unpruned model")
        keep_teacher(StreamedModel(teacher, torch.float32), batches, states)
        passes = RouterPasses(_model(student, spec), batches, states, routers)
        before_nats = passes.divergence(held_out)
        adam = torch.optim.Adam(
            [{"params": [p], "lr": rule.learning_rate * _size(p)} for p in routers.values()]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / rule.steps)
        for step in range(rule.steps):
            progress(1 + step, rule.steps + 1, f"routers, step {step}")
            passes.gradients(training[step % len(training)], rule.temperature)
            adam.step()
            schedule.step()
        trained = {}
        for layer, router in routers.items():
            name = spec.name("router", layer)
            trained[name] = _as_stored(router, checkpoint.tensors[name].dtype)
            # The divergence is measured with the rounded values that the checkpoint will hold.
            router.data = torch.from_numpy(trained[name])
        after_nats = passes.divergence(held_out)
    progress(rule.steps + 1, rule.steps + 1, "done")
    tokens = sum(passes.tokens(group) for group in training)
    return Distilled(trained, tokens, passes.tokens(held_out), before_nats, after_nats)


def _routers(checkpoint: Checkpoint, spec: ModelSpec) -> dict[int, nn.Parameter]:
    """Routers as float32 parameters, by layer; layers without experts have none."""
    return {
        layer: nn.Parameter(to_torch(checkpoint.read(spec.name("router", layer))).float())
        for layer in range(spec.num_layers)
        if spec.has_experts(layer)
    }


def _size(router_ED: nn.Parameter) -> float:
    """Root mean square of a router's weights."""
    return float(router_ED.detach().square().mean().sqrt())


def _model(directory: Path, spec: ModelSpec) -> LayeredModel:
    """Model in memory if it is small, so that steps need not read it; otherwise streamed."""
    if 4 * sum(tensor.elements for tensor in spec.tensors.values()) <= SMALL_MODEL_BYTES:
        return LayeredModel(load_torch_model(directory, torch.float32))
    return StreamedModel(directory, torch.float32)


def _check_routing(spec: ModelSpec) -> None:
    """Checks that routing weights depend on the routers; the choice of experts has no gradient.

    Raises:
        RecipeError: Every token takes one expert with the weight 1.
    """
    if spec.top_k == 1 and spec.normalize_top_k and spec.condensers is None:
        raise RecipeError(
            "prune.distill_router: every token of this model takes one expert with the weight 1, "
            "so that its routers have no gradient; leave distill_router out"
        )


def _groups(sequences: Sequence[NDArray[np.int32]], tokens: int) -> list[list[Batch]]:
    """Batches of the held-out sequences, then of the sequences of each step, shuffled.

    Raises:
        CalibrationError: Fewer than two sequences have a next token.
    """
    usable = [sequence for sequence in sequences if len(sequence) > 1]
    if len(usable) < 2:
        raise CalibrationError(
            f"prune.distill_router needs two calibration sequences of two tokens or more, found "
            f"{len(usable)}; raise calibrate.sequences or prune.calibration_tokens"
        )
    order = np.random.default_rng(SEED).permutation(len(usable))
    held_out = max(1, len(usable) // HELD_OUT)
    groups: list[list[NDArray[np.int32]]] = [[usable[s] for s in order[:held_out]], []]
    for sequence in (usable[s] for s in order[held_out:]):
        if groups[-1] and sum(map(len, groups[-1])) + len(sequence) > tokens:
            groups.append([])
        groups[-1].append(sequence)
    return [batches_of(group, BATCH_TOKENS) for group in groups]


def _numbered(groups: list[list[Batch]]) -> list[list[int]]:
    """Numbers of each group's batches, counted from 0 over all groups."""
    ends = list(accumulate(len(group) for group in groups))
    return [list(range(end - len(group), end)) for group, end in zip(groups, ends, strict=True)]


def _needed_bytes(groups: list[list[Batch]], spec: ModelSpec) -> int:
    """Bytes of the stored states in float32.

    All tokens are stored before the first router, after the teacher's final norm, and once in
    between. Tokens of one group are stored after every layer, with two copies of their gradients.
    """
    positions: list[int] = [sum(batch.tokens_BL.numel() for batch in group) for group in groups]
    kept = 3 * sum(positions) + (spec.num_layers + 2) * max(positions)
    return 4 * spec.hidden_size * kept


def _as_stored(router_ED: nn.Parameter, dtype: np.dtype[np.generic]) -> NDArray[np.float32]:
    """Router rounded to the stored dtype, as float32."""
    stored: NDArray[np.float32] = router_ED.detach().numpy().astype(dtype).astype(np.float32)
    return stored
