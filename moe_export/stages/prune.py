"""The prune stage: the checkpoint without the dimensions that the plan removes.

Legend: D hidden, R rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.ledger import (
    BlockErrors,
    Distill,
    HeldOutKl,
    Ledger,
    LeftTensor,
    PrunedCounts,
    PrunedTensor,
    Refit,
)
from moe_export.artifacts.plan import Plan
from moe_export.checkpoint import Checkpoint, CheckpointWriter, overwrite
from moe_export.documents.licence_files import copy_licence_files
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import ArtifactError, RecipeError
from moe_export.experts import kept_rows
from moe_export.families import check_tensors, open_checkpoint, spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import (
    PRUNED_PREFIX,
    SHARED_WIDTHS_KEY,
    WIDTHS_KEY,
    ModelSpec,
    TensorSpec,
)
from moe_export.families.config import with_top_k
from moe_export.families.features import UNITS_ROLE
from moe_export.families.stored import stored_dtype
from moe_export.recipe import DistillSettings, PruneSettings
from moe_export.reporting.card import Pruning, prune_card, write_card
from moe_export.reporting.card_source import source_of
from moe_export.scoring.source_weights import SourceWeights
from moe_export.stages.job import Job
from moe_export.system.disk import require_space
from moe_export.system.prefetch import AHEAD_BYTES, prefetched

if TYPE_CHECKING:
    from moe_export.fitting.fitted_layer import FittedLayer

logger = logging.getLogger(__name__)

PADDED_FOLDER = "padded"
EXPERT_AXIS = {"gate": 0, "up": 0, "down": 1}
EXPERT_AXIS |= {f"shared_{role}": axis for role, axis in EXPERT_AXIS.items()}
"""The axis of an expert's tensor along which its intermediate dimensions lie, by role."""

Kept = dict[tuple[int, int], NDArray[np.int64]]
"""Ascending positions of the kept rows, by layer and expert; a pruned shared expert has the number
after the last routed one.
"""


def run(job: Job[PruneSettings]) -> None:
    """Writes the pruned checkpoint with its ledger, and a padded twin if the recipe asks for it.

    Raises:
        CheckpointError: the source does not hold exactly the tensors of its family.
        ResourceError: the disk is too small.
    """
    source, spec = open_checkpoint(job.model)
    plan = Plan.load(job.folders["plan"])
    importance = Importance.load(job.folders["importance"]).scores[plan.score]
    axis, widths = plan.axis_of(spec), plan.axis_widths_after
    routed = with_top_k(spec, source.config, axis.spec.top_k)
    _check_padded(job.settings, plan, spec)
    pruned = axis.resized(widths)
    kept: Kept = {
        (layer, expert): rows
        for layer in range(spec.num_layers)
        for expert, rows in enumerate(
            kept_rows(importance[layer], axis.tables[layer], widths[layer])
        )
    }
    _check_space(job.out, plan.checkpoint_tensor_bytes, source, job.settings.save_padded)
    config = pruned_config(routed, pruned)
    fits = _fits(job, pruned.spec, kept)
    refit = _write(job.out, source, config, spec, kept, fits, job.progress)
    copy_tokenizer_files(job.model, job.out)
    _write_card(job.origin, job.out, pruned.spec, Pruning.of(pruned.spec, spec), padded=False)
    rule = job.settings.distill_router
    distill = _distill(job, rule) if rule is not None else None
    _ledger(job.out, spec, pruned.spec, plan, refit, distill, source.dropped).save(job.out)
    if job.settings.save_padded:
        padded = job.out / PADDED_FOLDER
        padded.mkdir()
        _write_padded(padded, Checkpoint(job.out), routed, spec, job.progress)
        copy_tokenizer_files(job.model, padded)
        _write_card(job.origin, padded, spec, Pruning.of(pruned.spec, spec), padded=True)


def _check_padded(settings: PruneSettings, plan: Plan, spec: ModelSpec) -> None:
    """Checks that stock loaders can run the padded twin as the plan does.

    Raises:
        RecipeError: the family's code in transformers has a fixed number of experts per token, or
            the model has tensors that it does not know.
    """
    if settings.save_padded and (spec.compressed is not None or spec.condensers is not None):
        raise RecipeError(
            "prune.save_padded is for stock loaders, which would drop the compressed experts or "
            f"the router bias of this {spec.family.model_type}; leave it out"
        )
    is_fixed = spec.family.routing.score == "sparsemixer"
    if settings.save_padded and is_fixed and plan.top_k not in (None, plan.top_k_before):
        raise RecipeError(
            f"prune.save_padded is for stock loaders, whose router of {spec.family.model_type} "
            f"always takes two experts, and plan.top_k is {plan.top_k}; leave one of them out"
        )


def _write_card(
    model: Path, out: Path, written: ModelSpec, pruning: Pruning, *, padded: bool
) -> None:
    """Writes the card of a checkpoint, with the licence files of the source beside it."""
    licences = copy_licence_files(model, out)
    write_card(out, prune_card(source_of(model), written, pruning, licences, padded))


def _fits(job: Job[PruneSettings], pruned: ModelSpec, kept: Kept) -> Iterator[FittedLayer] | None:
    """Yields the fitted weights of each layer; None if the recipe asks for no fit."""
    settings = job.settings
    if not settings.refit:
        return None
    from moe_export.fitting.block_steps import StepRule  # noqa: PLC0415 - imports torch
    from moe_export.fitting.fit_block import FitRule  # noqa: PLC0415
    from moe_export.fitting.fit_layers import fit_layers  # noqa: PLC0415
    from moe_export.fitting.fit_tokens import FitTokens  # noqa: PLC0415

    part = Calibration.load(job.folders["calibrate"]).thinned(settings.calibration_tokens)
    weight_K = SourceWeights.of(part).token_weight_K
    blocks = settings.block_steps
    return fit_layers(
        job.model,
        pruned,
        kept,
        FitTokens(part.sequences(), weight_K[part.source_S]),
        FitRule(
            **settings.refit.model_dump(), steps=StepRule(**blocks.model_dump()) if blocks else None
        ),
        job.partial / "fit",
    )


def _distill(job: Job[PruneSettings], settings: DistillSettings) -> Distill:
    """Distils the routers of the written checkpoint, and replaces them if that lowers the KL."""
    from moe_export.fitting.distill import Rule, distill_routers  # noqa: PLC0415 - imports torch

    distilled = distill_routers(
        job.model,
        job.out,
        _sequences(job),
        Rule(**settings.model_dump()),
        job.partial / "distill",
        job.progress,
    )
    if distilled.is_better:
        overwrite(job.out, distilled.routers)
    else:
        logger.warning(
            "prune.distill_router: on %d held-out tokens the KL from the unpruned model was %.6f "
            "nats with the routers as they were and %.6f nats with the distilled ones, so they "
            "stay as they were",
            distilled.held_out_tokens,
            distilled.before_nats,
            distilled.after_nats,
        )
    return Distill(
        tensors=tuple(sorted(distilled.routers)) if distilled.is_better else (),
        tokens=distilled.tokens,
        held_out_tokens=distilled.held_out_tokens,
        held_out_kl_nats=HeldOutKl(before=distilled.before_nats, after=distilled.after_nats),
    )


def _sequences(job: Job[PruneSettings]) -> list[NDArray[np.int32]]:
    """The calibration sequences that kept weights are fitted on."""
    return Calibration.load(job.folders["calibrate"]).sample(job.settings.calibration_tokens)


def pruned_config(config: dict[str, Any], pruned: Axis) -> dict[str, Any]:
    """Returns the source's config with our own model_type and the widths of the experts.

    Args:
        config: content of the source's `config.json`.
        pruned: the pruned model; the widths of its shared expert are stated if it is on the axis.
    """
    spec, family = pruned.spec, pruned.spec.family
    return config | {
        **({SHARED_WIDTHS_KEY: list(spec.shared_widths)} if pruned.has_shared else {}),
        "model_type": PRUNED_PREFIX + family.model_type,
        "architectures": ["Ragged" + family.architecture],
        WIDTHS_KEY: [list(layer) for layer in spec.widths],
    }


def _write(
    out: Path,
    source: Checkpoint,
    config: dict[str, Any],
    spec: ModelSpec,
    kept: Kept,
    fits: Iterator[FittedLayer] | None,
    progress: Callable[[int, int, str], None],
) -> Refit:
    """Writes one shard per layer and one for the rest.

    Returns:
        The weights that were fitted, and those that were not.
    """
    refit = Refit(tensors=(), left=())
    fitted: dict[str, NDArray[np.float32]] = {}

    written = spec_of(config)

    def values_of(name: str) -> NDArray[Any]:
        tensor = written.tensors[name]
        if tensor.role == UNITS_ROLE:
            return _units(source, spec, kept, tensor.layer)
        values = source.read(name)
        place = _place(spec, tensor)
        if name in fitted:
            return fitted[name].astype(values.dtype)
        if place is None or place not in kept:
            return values
        return np.take(values, kept[place], EXPERT_AXIS[tensor.role])

    layers: list[int | None] = [None, *range(spec.num_layers)]
    with CheckpointWriter(out, config, num_shards=len(layers)) as writer:
        for number, layer in enumerate(layers):
            progress(number, len(layers), "prune" if layer is None else f"layer {layer}")
            names = [name for name, tensor in written.tensors.items() if tensor.layer == layer]
            if fits is not None and layer is not None:
                fit = next(fits)
                fitted = fit.tensors
                refit = _with_layer(refit, spec, layer, fit, _left(names, spec, written, fit))
            _stream(writer, names, source, written, values_of)
    progress(len(layers), len(layers), "done")
    _warn_of_left(refit)
    return refit


def _units(
    source: Checkpoint, spec: ModelSpec, kept: Kept, layer: int | None
) -> NDArray[np.float32]:
    """Columns of the hidden vectors that the kept rows of a layer's experts have, [R]."""
    assert layer is not None
    name, widths = spec.name(UNITS_ROLE, layer), spec.widths[layer]
    if name in spec.tensors:
        whole_R = source.read(name)
    else:
        whole_R = np.concatenate([np.arange(width) for width in widths])
    blocks = np.split(whole_R, np.cumsum(widths)[:-1])
    units = [block[kept[layer, expert]] for expert, block in enumerate(blocks)]
    return np.concatenate(units).astype(np.float32)


def _warn_of_left(refit: Refit) -> None:
    if refit.left:
        logger.warning(
            "prune.refit: %d pruned experts keep their weights, because too few calibration tokens "
            "reach them or the fit was no better on held-out ones; more calibrate.sequences help",
            len(refit.left),
        )


def _with_layer(
    refit: Refit, spec: ModelSpec, layer: int, fit: FittedLayer, left: list[LeftTensor]
) -> Refit:
    """The account of fitting with one more layer."""
    blocks = () if fit.errors is None else (BlockErrors(layer=layer, **asdict(fit.errors)),)
    roles = [spec.tensors[name].role for name in fit.tensors]
    return Refit(
        experts=(refit.experts or 0) + roles.count("down") + roles.count("shared_down"),
        tensors=(*refit.tensors, *fit.tensors),
        left=(*refit.left, *left),
        blocks=(*(refit.blocks or ()), *blocks),
    )


def _place(spec: ModelSpec, tensor: TensorSpec) -> tuple[int, int] | None:
    """The key of a tensor's expert in `Kept`; None if the tensor belongs to no expert."""
    if tensor.layer is None or tensor.role not in EXPERT_AXIS:
        return None
    return (tensor.layer, spec.num_experts if tensor.expert is None else tensor.expert)


def _left(
    names: list[str], spec: ModelSpec, written: ModelSpec, fit: FittedLayer
) -> list[LeftTensor]:
    """The pruned `down` matrices of a layer that were not fitted."""
    left = []
    for name in names:
        tensor = spec.tensors.get(name, written.tensors[name])
        place, width = _place(spec, tensor), written.tensors[name].shape[-1]
        if place is None or EXPERT_AXIS[tensor.role] == 0 or name in fit.tensors:
            continue
        if width in (0, tensor.shape[-1]):
            continue
        left.append(LeftTensor(tensor=name, tokens=fit.tokens[place[1]]))
    return left


def _write_padded(
    out: Path,
    pruned: Checkpoint,
    config: dict[str, Any],
    spec: ModelSpec,
    progress: Callable[[int, int, str], None],
) -> None:
    """Writes the pruned checkpoint with zeros up to the widths that stock loaders expect."""

    def values_of(name: str) -> NDArray[Any]:
        values = pruned.read(name)
        shape = spec.tensors[name].shape
        zeros = [(0, full - kept) for full, kept in zip(shape, values.shape, strict=True)]
        return np.pad(values, zeros)

    layers: list[int | None] = [None, *range(spec.num_layers)]
    with CheckpointWriter(out, config, num_shards=len(layers)) as writer:
        for number, layer in enumerate(layers):
            progress(number, len(layers), "padded twin")
            names = [name for name, tensor in spec.tensors.items() if tensor.layer == layer]
            _stream(writer, names, pruned, spec, values_of)
    progress(len(layers), len(layers), "done")


def _stream(
    writer: CheckpointWriter,
    names: list[str],
    source: Checkpoint,
    written: ModelSpec,
    values_of: Callable[[str], NDArray[Any]],
) -> None:
    """Writes a shard while the next tensors are read."""

    def size_bytes(name: str) -> int:
        return source.tensors[name].size_bytes if name in source.tensors else 0

    writer.stream_shard(
        {
            name: (stored_dtype(source, written, name), written.tensors[name].shape)
            for name in names
        },
        prefetched(names, values_of, size_bytes, AHEAD_BYTES),
    )


def _ledger(
    out: Path,
    spec: ModelSpec,
    pruned: ModelSpec,
    plan: Plan,
    refit: Refit,
    distill: Distill | None,
    dropped: dict[str, str],
) -> Ledger:
    """Accounts for every tensor of the source, and checks the written bytes against the plan.

    Raises:
        ArtifactError: the written tensors have other bytes than the plan predicted.
    """
    written = Checkpoint(out)
    check_tensors(written, pruned)
    entries = {
        name: PrunedTensor(
            action="kept" if pruned.tensors[name].shape == before.shape else "sliced",
            shape_before=before.shape,
            shape_after=written.tensors[name].shape,
            bytes=written.tensors[name].size_bytes,
        )
        for name, before in spec.tensors.items()
    }
    total = sum(info.size_bytes for info in written.tensors.values())
    if total != plan.checkpoint_tensor_bytes:
        raise ArtifactError(
            f"{out}: {total} bytes of tensors were written, the plan predicted "
            f"{plan.checkpoint_tensor_bytes}; this is a fault of moe-export, please report it"
        )
    actions = [entry.action for entry in entries.values()]
    return Ledger(
        tensor_bytes=total,
        counts=PrunedCounts(
            kept=actions.count("kept"), sliced=actions.count("sliced"), dropped=len(dropped)
        ),
        refit=refit,
        distill=distill,
        tensors=entries,
        dropped=dropped or None,
    )


def _check_space(out: Path, pruned_bytes: int, source: Checkpoint, padded: bool) -> None:
    needed = pruned_bytes
    if padded:
        needed += sum(info.size_bytes for info in source.tensors.values())
    require_space(out, needed, "the pruned checkpoint")
