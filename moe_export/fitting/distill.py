"""Distilling the routers of a pruned model: they are fitted to the experts as these now are.

Sought are the routers by which the pruned model's distributions are nearest to those of the
unpruned one (`scores.loss.divergence_nats`), after arXiv:2603.02217: by Adam without decay, its
rate falling evenly to zero. Adam moves a weight by about its rate whatever the gradient is, so
that the rate is given over the size of the router's weights; 5e-5 there is an absolute one.

The unpruned model runs once, and its last hidden states are kept: head and final norm are the same.

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
"""Of the order of sequences; any number would do."""

HELD_OUT = 8
"""One sequence of so many is not trained on."""


@dataclass(frozen=True)
class Rule:
    """How it is done; the words are those of the recipe's `distill_router`."""

    steps: int
    learning_rate: float
    temperature: float
    tokens_per_step: int


@dataclass(frozen=True)
class Distilled:
    """What came of it.

    Attributes:
        routers: by tensor name, float32 [E, D] as the checkpoint will hold them.
        tokens: trained on, of those that have a next token.
        held_out_tokens: the others.
        before_nats: mean KL from the unpruned model on the latter, with the routers as they were.
        after_nats: with those that were found.
    """

    routers: dict[str, NDArray[np.float32]]
    tokens: int
    held_out_tokens: int
    before_nats: float
    after_nats: float

    @property
    def is_better(self) -> bool:
        """Whether what was found is worth taking."""
        return self.after_nats < self.before_nats


def distill_routers(
    teacher: Path,
    student: Path,
    sequences: Sequence[NDArray[np.int32]],
    rule: Rule,
    folder: Path,
    progress: Progress = silent,
) -> Distilled:
    """Fits the routers of a pruned checkpoint.

    Args:
        teacher: the unpruned checkpoint.
        student: the pruned one, which is only read.
        sequences: calibration tokens.
        rule: how.
        folder: for states between layers; it may be removed after.
        progress: told of every step.

    Raises:
        RecipeError: the model's routing weights are the same whatever its routers are.
        CalibrationError: there are not two sequences of two tokens.
        ResourceError: the disk is too small for the states.
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
        falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / rule.steps)
        for step in range(rule.steps):
            progress(1 + step, rule.steps + 1, f"routers, step {step}")
            passes.gradients(training[step % len(training)], rule.temperature)
            adam.step()
            falling.step()
        found = {}
        for layer, router in routers.items():
            name = spec.name("router", layer)
            found[name] = _as_stored(router, checkpoint.tensors[name].dtype)
            # It is judged by what the checkpoint will hold.
            router.data = torch.from_numpy(found[name])
        after_nats = passes.divergence(held_out)
    progress(rule.steps + 1, rule.steps + 1, "done")
    tokens = sum(passes.tokens(group) for group in training)
    return Distilled(found, tokens, passes.tokens(held_out), before_nats, after_nats)


def _routers(checkpoint: Checkpoint, spec: ModelSpec) -> dict[int, nn.Parameter]:
    """By layer; layers without experts have none."""
    return {
        layer: nn.Parameter(to_torch(checkpoint.read(spec.name("router", layer))).float())
        for layer in range(spec.num_layers)
        if spec.has_experts(layer)
    }


def _size(router_ED: nn.Parameter) -> float:
    """The root mean square of its weights."""
    return float(router_ED.detach().square().mean().sqrt())


def _model(directory: Path, spec: ModelSpec) -> LayeredModel:
    """In memory if it is small, so that no step reads it; the numbers are the same."""
    if 4 * sum(tensor.elements for tensor in spec.tensors.values()) <= SMALL_MODEL_BYTES:
        return LayeredModel(load_torch_model(directory, torch.float32))
    return StreamedModel(directory, torch.float32)


def _check_routing(spec: ModelSpec) -> None:
    """Which experts are chosen has no gradient; what they are weighed with must have one."""
    if spec.top_k == 1 and spec.normalize_top_k:
        raise RecipeError(
            "prune.distill_router: every token of this model takes one expert with the weight 1, "
            "so that its routers have no gradient; leave distill_router out"
        )


def _groups(sequences: Sequence[NDArray[np.int32]], tokens: int) -> list[list[Batch]]:
    """The sequences that are held out, then those of each step, shuffled.

    Raises:
        CalibrationError: too few of them have a next token.
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
    """The numbers of each group's batches, from 0 on."""
    ends = list(accumulate(len(group) for group in groups))
    return [list(range(end - len(group), end)) for group, end in zip(groups, ends, strict=True)]


def _needed_bytes(groups: list[list[Batch]], spec: ModelSpec) -> int:
    """All tokens before the first router, behind the teacher, and once on their way there; those of
    one group after every layer, and their gradients twice.
    """
    positions: list[int] = [sum(batch.tokens_BL.numel() for batch in group) for group in groups]
    kept = 3 * sum(positions) + (spec.num_layers + 2) * max(positions)
    return 4 * spec.hidden_size * kept


def _as_stored(router_ED: nn.Parameter, dtype: np.dtype[np.generic]) -> NDArray[np.float32]:
    """What the checkpoint will hold of it, in float32."""
    stored: NDArray[np.float32] = router_ED.detach().numpy().astype(dtype).astype(np.float32)
    return stored
