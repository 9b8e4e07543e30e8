"""The tune stage: the model trained on documents of its own.

It writes a checkpoint with the names and dtypes of the one that it read, which all later stages
take in its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.tuning import TunedSource, Tuning, VectorMovement
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.documents.licence_files import copy_licence_files
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import GateError
from moe_export.families import open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.recipe import TuneSettings
from moe_export.reporting.card import Pruning, tune_card, write_card
from moe_export.reporting.card_source import source_of
from moe_export.stages.job import Job
from moe_export.system.disk import require_space
from moe_export.system.host import physical_bytes
from moe_export.tuning.by_layer import tuned_by_layer
from moe_export.tuning.draw import TuningSet, drawn
from moe_export.tuning.extension import config_keys, extended
from moe_export.tuning.methods import check_method
from moe_export.tuning.needs import require_memory
from moe_export.tuning.outcome import Outcome
from moe_export.tuning.task import TuningTask
from moe_export.tuning.whole import tuned_in_memory


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
    train = tuned_in_memory if settings.only is None else tuned_by_layer
    task = TuningTask(
        source=job.model,
        before=checkpoint,
        spec=extended(spec, settings),
        sets=sets,
        settings=settings,
        partial=job.partial,
        progress=job.progress,
    )
    found = train(task)
    account = _account(sets, found.before, found.after)
    _require_gain(account, found.steps)
    changed = _write(job.out, checkpoint, found)
    _copy_files(job, found.spec, before)
    _tuning(settings, found, sets, account, changed).save(job.out)
    job.progress(1, 1, "done")


def _tuning(
    settings: TuneSettings,
    found: Outcome,
    sets: list[TuningSet],
    account: tuple[TunedSource, ...],
    changed: list[str],
) -> Tuning:
    return Tuning(
        method=settings.method,
        objective=settings.objective,
        only=settings.only,
        top_k=found.spec.top_k,
        active_experts=found.spec.active_experts,
        steps=found.steps,
        epochs=round(found.documents / sum(len(each.training) for each in sets), 3),
        tokens=found.tokens,
        padding=1 - found.tokens / found.positions,
        losses=tuple(found.losses),
        sources=account,
        before=_mean(account, "before"),
        after=_mean(account, "after"),
        experts=found.experts,
        routers=found.routers,
        vectors=_movement(found.values, found.spec),
        layers=found.layers,
        trained_parameters=_trained_parameters(found),
        changed=tuple(changed),
        equal=len(found.spec.tensors) - len(changed),
    )


def _trained_parameters(found: Outcome) -> int:
    """Number of values that gradients trained; biases have a rule of their own."""
    tensors = found.spec.tensors
    return sum(v.size for name, v in found.values.items() if tensors[name].role != "router_bias")


def _movement(values: dict[str, NDArray[Any]], spec: ModelSpec) -> VectorMovement | None:
    """Mean distance of the vectors from 1; None without vectors."""
    if spec.compressed is None:
        return None

    def mean(role: str) -> float | None:
        own = [v for name, v in values.items() if spec.tensors[name].role == f"compressed_{role}"]
        return float(np.mean([np.abs(v - 1).mean(dtype=np.float64) for v in own])) if own else None

    return VectorMovement(input=mean("input") or 0.0, hidden=mean("hidden"), up=mean("up"))


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


def _write(out: Path, checkpoint: Checkpoint, found: Outcome) -> list[str]:
    """Writes one shard per layer and one for the rest, and returns the tensors that changed."""
    changed: list[str] = []
    spec, values = found.spec, found.values
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
