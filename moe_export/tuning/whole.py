"""Training of a whole model in memory, judged on held-out documents before and after."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from moe_export.artifacts.tuning import TunedRouter
from moe_export.checkpoint import Checkpoint
from moe_export.documents.tokens import TokenSequence
from moe_export.families.base import ModelSpec
from moe_export.recipe import TuneSettings
from moe_export.torch_model import load_torch_model
from moe_export.tuning.condense import Condensing
from moe_export.tuning.esft import chosen_experts
from moe_export.tuning.extension import condensers_of, config_keys
from moe_export.tuning.forward import mean_loss
from moe_export.tuning.methods import Chosen, Trained
from moe_export.tuning.outcome import Outcome
from moe_export.tuning.packing import PackedBatch, batch_of, packings, packs
from moe_export.tuning.rounding import rounded
from moe_export.tuning.task import TuningTask
from moe_export.tuning.train import Training
from moe_export.tuning.usage import Usage, usage_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def tuned_in_memory(task: TuningTask) -> Outcome:
    """Trains what the method trains.

    Raises:
        CheckpointError: A loss is not finite, or weights become too large.
    """
    spec, settings = task.spec, task.settings
    added = config_keys(spec)
    model = load_torch_model(task.before.directory, torch.float32, settings.top_k, added)
    distills = settings.objective == "distill"
    teacher = load_torch_model(task.source, torch.float32) if distills else None
    judged = [_packed(each.held_out, spec, settings) for each in task.sets]
    was = [mean_loss(model, batches, teacher) for batches in judged]
    used = _usage(model, spec, judged)
    documents = [document for each in task.sets for document in each.training]
    experts = _experts(model, spec, documents, settings)
    names = Trained(settings.method, experts).names(spec)
    training = _training(model, teacher, names, documents, task)
    losses = training.run()
    spec = _with_condensers(training, spec)
    values = _values(training, task.before, spec)
    batches = [training.batch(number) for number in range(len(losses))]
    return Outcome(
        spec=spec,
        values=values,
        before=was,
        after=[mean_loss(model, batches, teacher) for batches in judged],
        steps=len(losses),
        losses=losses,
        tokens=sum(int(batch.is_real_RL.sum()) for batch in batches),
        positions=sum(batch.is_real_RL.numel() for batch in batches),
        documents=sum(len(row) for packed in training.steps for row in packed),
        experts=experts,
        routers=_routers(training, used, _usage(model, spec, judged)),
    )


def _training(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    names: list[str],
    documents: list[TokenSequence],
    task: TuningTask,
) -> Training:
    settings = task.settings
    epochs = None if settings.steps else settings.epochs or 1
    steps = packings(
        [len(document.tokens) - 1 for document in documents],
        settings.rows,
        settings.sequence_length,
        seed=settings.seed,
        epochs=epochs,
        steps=settings.steps,
        alone=not packs(task.spec),
    )
    return Training(
        model,
        names,
        documents,
        steps,
        settings,
        task.partial,
        teacher,
        Condensing(model, settings, len(steps)) if task.spec.condensers is not None else None,
        lambda step: task.progress(step, len(steps), f"step {step}"),
    )


def _packed(
    documents: list[TokenSequence], spec: ModelSpec, settings: TuneSettings
) -> list[PackedBatch]:
    """Batches with each document once."""
    lengths = [len(document.tokens) - 1 for document in documents]
    row = settings.sequence_length
    return [
        batch_of(packed, documents, row, settings.prompt_weight)
        for packed in packings(
            lengths, settings.rows, row, seed=settings.seed, epochs=1, alone=not packs(spec)
        )
    ]


def _experts(
    model: PreTrainedModel, spec: ModelSpec, documents: list[TokenSequence], settings: TuneSettings
) -> Chosen | None:
    """Experts that `esft` trains; None for other methods."""
    if settings.method != "esft":
        return None
    batches = _packed(documents, spec, settings)
    return chosen_experts(model, spec.num_layers, batches, settings.choice)


def _with_condensers(training: Training, spec: ModelSpec) -> ModelSpec:
    """Sizes of the model with the condensers that the training has chosen."""
    if training.condensing is None:
        return spec
    chosen = training.condensing.experts
    experts = tuple(chosen.get(layer, ()) for layer in range(spec.num_layers))
    return replace(spec, condensers=condensers_of(training.settings, experts))


def _usage(
    model: PreTrainedModel, spec: ModelSpec, judged: list[list[PackedBatch]]
) -> dict[int, Usage]:
    """Use of the experts by the held-out documents; nothing unless routers have a bias."""
    if spec.condensers is None:
        return {}
    return usage_of(model, (batch for batches in judged for batch in batches))


def _routers(
    training: Training, before: dict[int, Usage], after: dict[int, Usage]
) -> tuple[TunedRouter, ...] | None:
    if training.condensing is None:
        return None
    return tuple(
        TunedRouter(
            layer=block.layer,
            load_before=before[block.layer].load,
            load_after=after[block.layer].load,
            largest_bias=float(block.router_bias.abs().max()),
            condensers=block.own_condensers,
            probabilities=after[block.layer].probability(block.own_condensers),
        )
        for block in training.condensing.blocks
    )


def _values(training: Training, before: Checkpoint, spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """Trained weights as they are stored, which the model gets too, and biases."""
    values = {
        name: rounded(name, parameter, before, spec)
        for name, parameter in training.parameters.items()
    }
    for block in training.condensing.blocks if training.condensing is not None else ():
        values[spec.name("router_bias", block.layer)] = block.router_bias.numpy()
    return values
