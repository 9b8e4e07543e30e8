"""The tune stage: the model trained on documents of its own.

It writes a checkpoint with the names and dtypes of the one that it read, which all later stages
take in its place.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.tuning import TunedRouter, TunedSource, Tuning, VectorMovement
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.documents.licence_files import copy_licence_files
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.documents.tokens import TokenSequence
from moe_export.errors import CheckpointError, GateError
from moe_export.families import open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.recipe import TuneSettings
from moe_export.reporting.card import Pruning, tune_card, write_card
from moe_export.reporting.card_source import source_of
from moe_export.stages.job import Job
from moe_export.system.disk import require_space
from moe_export.system.host import physical_bytes
from moe_export.torch_model import load_torch_model
from moe_export.tuning.condense import Condensing
from moe_export.tuning.draw import TuningSet, drawn
from moe_export.tuning.esft import chosen_experts
from moe_export.tuning.extension import condensers_of, config_keys, extended
from moe_export.tuning.forward import mean_loss
from moe_export.tuning.methods import Chosen, Trained, check_method
from moe_export.tuning.needs import require_memory
from moe_export.tuning.packing import PackedBatch, batch_of, packings, packs
from moe_export.tuning.train import Training
from moe_export.tuning.usage import Usage, usage_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Models:
    """Models of a tuning: the one that is trained, and the goal of distilling if there is one."""

    student: PreTrainedModel
    teacher: PreTrainedModel | None


def run(job: Job[TuneSettings]) -> None:
    """Writes the tuned checkpoint and its account.

    Raises:
        RecipeError: the method does not suit the model's routers.
        CalibrationError: a source of documents is unusable.
        GateError: the tuned model is no better on held-out documents.
        ResourceError: the disk or the memory is too small.
    """
    settings = job.settings
    before = job.folders["prune"] if settings.after == "prune" else job.model
    checkpoint, spec = open_checkpoint(before, settings.top_k)
    check_method(spec, settings)
    require_memory(spec, settings, physical_bytes())
    require_space(job.out, _bytes(checkpoint), "the tuned checkpoint")
    sets = drawn(settings, job.model)
    spec = extended(spec, settings)
    models = _models(job, before, config_keys(spec))
    judged = [_packed(each.held_out, spec, settings) for each in sets]
    was = [mean_loss(models.student, batches, models.teacher) for batches in judged]
    used = _usage(models.student, spec, judged)
    documents = [document for each in sets for document in each.training]
    experts = _experts(models.student, spec, documents, settings)
    training = _training(job, models, spec, Trained(settings.method, experts), documents)
    losses = training.run()
    spec = _with_condensers(training, spec)
    values = _rounded(training, checkpoint, spec)
    became = [mean_loss(models.student, batches, models.teacher) for batches in judged]
    account = _account(sets, was, became)
    _require_gain(account, len(losses))
    changed = _write(job.out, checkpoint, spec, values)
    routers = _routers(training, used, _usage(models.student, spec, judged))
    _copy_files(job, spec, before)
    batches = [training.batch(number) for number in range(len(losses))]
    tokens = sum(int(batch.is_real_RL.sum()) for batch in batches)
    documents_used = sum(len(row) for packed in training.steps for row in packed)
    Tuning(
        method=settings.method,
        objective=settings.objective,
        top_k=spec.top_k,
        active_experts=spec.active_experts,
        steps=len(losses),
        epochs=round(documents_used / len(documents), 3),
        tokens=tokens,
        padding=1 - tokens / sum(batch.is_real_RL.numel() for batch in batches),
        losses=tuple(losses),
        sources=account,
        before=_mean(account, "before"),
        after=_mean(account, "after"),
        experts=experts,
        routers=routers,
        vectors=_movement(values, spec),
        trained_parameters=sum(weight.numel() for weight in training.parameters.values()),
        changed=tuple(changed),
        equal=len(spec.tensors) - len(changed),
    ).save(job.out)
    job.progress(1, 1, "done")


def _models(job: Job[TuneSettings], before: Path, added: dict[str, Any]) -> _Models:
    settings = job.settings
    student = load_torch_model(before, torch.float32, settings.top_k, added)
    teacher = None
    if settings.objective == "distill":
        teacher = load_torch_model(job.model, torch.float32)
    return _Models(student, teacher)


def _training(
    job: Job[TuneSettings],
    models: _Models,
    spec: ModelSpec,
    rule: Trained,
    documents: list[TokenSequence],
) -> Training:
    settings = job.settings
    epochs = None if settings.steps else settings.epochs or 1
    steps = packings(
        [len(document.tokens) - 1 for document in documents],
        settings.rows,
        settings.sequence_length,
        seed=settings.seed,
        epochs=epochs,
        steps=settings.steps,
        alone=not packs(spec),
    )
    return Training(
        models.student,
        rule.names(spec),
        documents,
        steps,
        settings,
        job.partial,
        models.teacher,
        Condensing(models.student, settings, len(steps)) if spec.condensers is not None else None,
        lambda step: job.progress(step, len(steps), f"step {step}"),
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


def _movement(values: dict[str, NDArray[Any]], spec: ModelSpec) -> VectorMovement | None:
    """Mean distance of the vectors from 1; None without vectors."""
    if spec.compressed is None:
        return None

    def mean(role: str) -> float | None:
        own = [v for name, v in values.items() if spec.tensors[name].role == f"compressed_{role}"]
        return float(np.mean([np.abs(v - 1).mean(dtype=np.float64) for v in own])) if own else None

    return VectorMovement(input=mean("input") or 0.0, hidden=mean("hidden"), up=mean("up"))


def _rounded(
    training: Training, checkpoint: Checkpoint, spec: ModelSpec
) -> dict[str, NDArray[Any]]:
    """Trained weights in the dtypes of the checkpoint; the model gets the rounded values.

    Vectors and biases stay float32.

    Raises:
        CheckpointError: a weight is too large for its dtype.
    """
    values = {}
    for name, parameter in training.parameters.items():
        own = spec.tensors[name].stored
        dtype = checkpoint.tensors[name].dtype if own is None else np.dtype(own)
        values[name] = parameter.detach().numpy().astype(dtype)
        rounded = values[name].astype(np.float32)
        if not np.isfinite(rounded).all():
            raise CheckpointError(
                f"tune: {name} has values that {dtype} cannot hold; lower tune.learning_rate"
            )
        parameter.data.copy_(torch.from_numpy(rounded))
    for block in training.condensing.blocks if training.condensing is not None else ():
        values[spec.name("router_bias", block.layer)] = block.router_bias.numpy()
    return values


def _account(
    sets: list[TuningSet], before: list[float], after: list[float]
) -> tuple[TunedSource, ...]:
    return tuple(
        TunedSource(
            name=each.name,
            documents=len(each.training),
            held_out_documents=len(each.held_out),
            dropped_documents=each.dropped,
            weight=each.weight,
            before=was,
            after=became,
        )
        for each, was, became in zip(sets, before, after, strict=True)
    )


def _mean(account: tuple[TunedSource, ...], field: str) -> float:
    """Mean over the sources by weight."""
    total = sum(source.weight for source in account)
    nats: float = sum(source.weight * getattr(source, field) for source in account) / total
    return nats


def _require_gain(account: tuple[TunedSource, ...], steps: int) -> None:
    """Stops if tuning did not lower the loss on held-out documents.

    Raises:
        GateError: the loss is no lower.
    """
    before, after = _mean(account, "before"), _mean(account, "after")
    if not after < before:
        raise GateError(
            f"tune: the loss on held-out documents is {after:.4f} nats per token after {steps} "
            f"steps and was {before:.4f} before; change tune.learning_rate or tune.steps, give "
            "more documents, or leave the section out"
        )


def _write(
    out: Path, checkpoint: Checkpoint, spec: ModelSpec, values: dict[str, NDArray[Any]]
) -> list[str]:
    """Writes one shard per layer and one for the rest, and returns the tensors that changed."""
    changed: list[str] = []
    layers: list[int | None] = [None, *range(spec.num_layers)]
    config = checkpoint.config | config_keys(spec)
    with CheckpointWriter(out, config, num_shards=len(layers)) as writer:
        for layer in layers:
            shard = {}
            for name in (n for n, t in spec.tensors.items() if t.layer == layer):
                stored = checkpoint.read(name) if name in checkpoint.tensors else None
                value = values.get(name, stored)
                assert value is not None  # an added tensor is trained
                shard[name] = value
                if stored is None or shard[name].tobytes() != stored.tobytes():
                    changed.append(name)
            writer.write_shard(shard)
    return changed


def _copy_files(job: Job[TuneSettings], spec: ModelSpec, before: Path) -> None:
    """Copies the tokenizer and the licence files, and writes the card."""
    copy_tokenizer_files(before, job.out)
    licences = copy_licence_files(job.origin, job.out)
    pruning = Pruning.of(spec, open_checkpoint(job.model)[1])
    card = tune_card(source_of(job.origin), spec, pruning, licences, job.settings.method)
    write_card(job.out, card)


def _bytes(checkpoint: Checkpoint) -> int:
    return sum(info.size_bytes for info in checkpoint.tensors.values())
