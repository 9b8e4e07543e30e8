"""The checkpoint without the dimensions that the plan removes, layer by layer.

Legend: D hidden, R rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import load_json, save_json
from moe_export.artifacts.calibration import evenly_chosen, load_calibration
from moe_export.artifacts.importance import load_importance
from moe_export.artifacts.planned import axis_of, widths_after
from moe_export.checkpoint import Checkpoint, CheckpointWriter, overwrite
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import ArtifactError
from moe_export.experts import kept_rows
from moe_export.families import check_ledger, open_checkpoint, spec_of
from moe_export.families.axis import Axis
from moe_export.families.base import (
    PRUNED_PREFIX,
    SHARED_WIDTHS_KEY,
    WIDTHS_KEY,
    ModelSpec,
    TensorSpec,
)
from moe_export.recipe import DistillSettings, PruneSettings
from moe_export.stages.job import Job
from moe_export.system.disk import require_space
from moe_export.system.prefetch import ahead

if TYPE_CHECKING:
    from moe_export.fitting.refit import Refitted

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.json"
PADDED_FOLDER = "padded"
EXPERT_AXIS = {"gate": 0, "up": 0, "down": 1}
EXPERT_AXIS |= {f"shared_{role}": axis for role, axis in EXPERT_AXIS.items()}
"""The axis of an expert's tensor along which its intermediate dimensions lie, by role."""

AHEAD_BYTES = 128 << 20
"""Tensors that are read before it is their turn to be written."""

Kept = dict[tuple[int, int], NDArray[np.int64]]
"""By layer and expert, the shared one last where it is pruned: ascending positions that stay."""


def run(job: Job[PruneSettings]) -> None:
    """Writes a checkpoint directory with `ledger.json`, and its padded twin where asked for.

    Raises:
        CheckpointError: the source does not hold exactly the tensors of its family.
        ResourceError: the disk is too small.
    """
    source, spec = open_checkpoint(job.model)
    plan = load_json(job.folders["plan"] / "plan.json")
    importance = load_importance(job.folders["importance"]).scores[plan["score"]]
    widths, axis = widths_after(plan), axis_of(spec, plan)
    pruned = axis.resized(widths)
    kept: Kept = {
        (layer, expert): rows
        for layer in range(spec.num_layers)
        for expert, rows in enumerate(
            kept_rows(importance[layer], axis.tables[layer], widths[layer])
        )
    }
    _check_space(job.out, plan["checkpoint_tensor_bytes"], source, job.settings.save_padded)
    config = pruned_config(source.config, pruned)
    refits = _refits(job, kept) if job.settings.refit_down else None
    refit = _write(job.out, source, config, spec, kept, refits, job.progress)
    copy_tokenizer_files(job.model, job.out)
    fitted = {"refit": refit}
    if job.settings.distill_router is not None:
        fitted["distill"] = _distill(job, job.settings.distill_router)
    _write_ledger(job.out, spec, pruned.spec, plan, fitted)
    if job.settings.save_padded:
        padded = job.out / PADDED_FOLDER
        padded.mkdir()
        _write_padded(padded, Checkpoint(job.out), source.config, spec, job.progress)
        copy_tokenizer_files(job.model, padded)


def _refits(job: Job[PruneSettings], kept: Kept) -> Iterator[Refitted]:
    """The experts' new `down`, layer by layer."""
    from moe_export.fitting.refit import refit_by_layer  # noqa: PLC0415 - imports torch

    return refit_by_layer(job.model, kept, _sequences(job), job.settings.ridge)


def _distill(job: Job[PruneSettings], settings: DistillSettings) -> dict[str, Any]:
    """Fits the routers of the checkpoint that is written, and puts them in where that helps.

    Returns:
        What was done, for the ledger.
    """
    from moe_export.fitting.distill import Rule, distill_routers  # noqa: PLC0415 - imports torch

    found = distill_routers(
        job.model,
        job.out,
        _sequences(job),
        Rule(**settings.model_dump()),
        job.partial / "distill",
        job.progress,
    )
    if found.is_better:
        overwrite(job.out, found.routers)
    else:
        logger.warning(
            "prune.distill_router: on %d held-out tokens the KL from the unpruned model was %.6f "
            "nats with the routers as they were and %.6f nats with the distilled ones, so they "
            "stay as they were",
            found.held_out_tokens,
            found.before_nats,
            found.after_nats,
        )
    return {
        "tensors": sorted(found.routers) if found.is_better else [],
        "tokens": found.tokens,
        "held_out_tokens": found.held_out_tokens,
        "held_out_kl_nats": {"before": found.before_nats, "after": found.after_nats},
    }


def _sequences(job: Job[PruneSettings]) -> list[NDArray[np.int32]]:
    """What is kept is fitted on these."""
    sequences = load_calibration(job.folders["calibrate"]).sequences()
    return evenly_chosen(sequences, job.settings.calibration_tokens)


def pruned_config(config: dict[str, Any], pruned: Axis) -> dict[str, Any]:
    """The source's config under our own model_type, with the widths of the experts on the axis."""
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
    refits: Iterator[Refitted] | None,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """One shard per layer and one for the rest.

    Returns:
        Which tensors were refitted, and the experts that too few tokens reached.
    """
    refit: dict[str, Any] = {"tensors": [], "left": []}
    down: dict[str, NDArray[np.float32]] = {}

    def values_of(name: str) -> NDArray[Any]:
        tensor = spec.tensors[name]
        values = source.read(name)
        place = _place(spec, tensor)
        if place is None or place not in kept:
            return values
        if name in down:
            return down[name].astype(values.dtype)
        return np.take(values, kept[place], EXPERT_AXIS[tensor.role])

    written = spec_of(config)
    layers: list[int | None] = [None, *range(spec.num_layers)]
    with CheckpointWriter(out, config, num_shards=len(layers)) as writer:
        for number, layer in enumerate(layers):
            progress(number, len(layers), "prune" if layer is None else f"layer {layer}")
            names = [name for name, tensor in spec.tensors.items() if tensor.layer == layer]
            if refits is not None and layer is not None:
                found = next(refits)
                down = found.down
                refit["tensors"] += [name for name in names if name in down]
                refit["left"] += _left(names, spec, written, found)
            _stream(writer, names, source, written, values_of)
    progress(len(layers), len(layers), "done")
    return refit


def _place(spec: ModelSpec, tensor: TensorSpec) -> tuple[int, int] | None:
    """The key that the expert of a tensor has in `Kept`; None if it is no expert's matrix."""
    if tensor.layer is None or tensor.role not in EXPERT_AXIS:
        return None
    return (tensor.layer, spec.num_experts if tensor.expert is None else tensor.expert)


def _left(
    names: list[str], spec: ModelSpec, written: ModelSpec, found: Refitted
) -> list[dict[str, Any]]:
    """The pruned experts of a layer that too few tokens reached to refit them."""
    left = []
    for name in names:
        tensor = spec.tensors[name]
        is_pruned = written.tensors[name].shape != tensor.shape
        place = _place(spec, tensor)
        if place is None or EXPERT_AXIS[tensor.role] == 0 or not is_pruned or name in found.down:
            continue
        left.append({"tensor": name, "tokens": found.tokens[place[1]]})
    return left


def _write_padded(
    out: Path,
    pruned: Checkpoint,
    config: dict[str, Any],
    spec: ModelSpec,
    progress: Callable[[int, int, str], None],
) -> None:
    """What is in the pruned checkpoint, then explicit zeros up to the width that stock loaders
    expect.
    """

    def values_of(name: str) -> NDArray[Any]:
        values = pruned.read(name)
        shape = spec.tensors[name].shape
        missing = [(0, to - of) for to, of in zip(shape, values.shape, strict=True)]
        return np.pad(values, missing)

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
    """Writes a shard, reading ahead."""
    writer.stream_shard(
        {name: (source.tensors[name].dtype, written.tensors[name].shape) for name in names},
        ahead(names, values_of, lambda name: source.tensors[name].size_bytes, AHEAD_BYTES),
    )


def _write_ledger(
    out: Path, spec: ModelSpec, pruned: ModelSpec, plan: dict[str, Any], fitted: dict[str, Any]
) -> None:
    """Accounts for every tensor of the source, and holds what was written against the plan.

    Raises:
        ArtifactError: a written tensor is not what the plan says.
    """
    written = Checkpoint(out)
    check_ledger(written, pruned)
    entries = {
        name: {
            "action": "kept" if pruned.tensors[name].shape == before.shape else "sliced",
            "from": list(before.shape),
            "to": list(written.tensors[name].shape),
            "bytes": written.tensors[name].size_bytes,
        }
        for name, before in spec.tensors.items()
    }
    total = sum(info.size_bytes for info in written.tensors.values())
    if total != plan["checkpoint_tensor_bytes"]:
        raise ArtifactError(
            f"{out}: {total} bytes of tensors were written, the plan predicted "
            f"{plan['checkpoint_tensor_bytes']}; this is a fault of moe-export, please report it"
        )
    actions = [entry["action"] for entry in entries.values()]
    counts = {"kept": actions.count("kept"), "sliced": actions.count("sliced"), "dropped": 0}
    save_json(
        out / LEDGER_FILE,
        {"tensor_bytes": total, "counts": counts, **fitted, "tensors": entries},
    )


def _check_space(out: Path, pruned_bytes: int, source: Checkpoint, padded: bool) -> None:
    needed = pruned_bytes
    if padded:
        needed += sum(info.size_bytes for info in source.tensors.values())
    require_space(out, needed, "the pruned checkpoint")
