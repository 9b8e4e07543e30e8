"""The pruned checkpoint with its large matrices in fewer bits, layer by layer.

Legend: K inputs, N outputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.base import load_json, save_json
from moe_export.artifacts.calibration import evenly_chosen, load_calibration
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import CheckpointError
from moe_export.families import check_ledger, open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.families.stored import format_in, part_names, stored_tensors
from moe_export.formats.storage import to_storage
from moe_export.op import rounding as native
from moe_export.quantization import (
    QUANTIZATION_KEY,
    Method,
    Quantization,
    QuantizeResult,
    read_quantization,
)
from moe_export.recipe import QuantizeSettings
from moe_export.stages.job import Job
from moe_export.system.disk import require_space
from moe_export.system.prefetch import prefetched

logger = logging.getLogger(__name__)

QUANTIZATION_FILE = "quantization.json"

AHEAD_BYTES = 128 << 20
"""Of tensors that are read and rounded before it is their turn to be written."""


@dataclass
class _Sums:
    """Of one class of tensors."""

    tensors: int = 0
    elements: int = 0
    code_bytes: int = 0
    scale_bytes: int = 0
    """Of zero points too."""
    squared_error: float = 0.0
    squared_values: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors,
            "elements": self.elements,
            "code_bytes": self.code_bytes,
            "scale_bytes": self.scale_bytes,
            "relative_error": _relative(self.squared_error, self.squared_values),
        }


@dataclass(frozen=True)
class _Written:
    """One tensor.

    Attributes:
        parts: what is written, in order.
        values_shape: of the tensor as it was.
        made: how its codes came about; None if it has none.
        is_kept: whether it is as it was.
        squared_error: of the codes.
        squared_values: of what they were made from.
    """

    parts: tuple[NDArray[Any], ...]
    values_shape: tuple[int, ...]
    made: QuantizeResult | None = None
    is_kept: bool = False
    squared_error: float = 0.0
    squared_values: float = 0.0


@dataclass
class _Ledger:
    """What became of every tensor."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    sums: dict[str, _Sums] = field(default_factory=dict)
    fallbacks: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, name: str, written: _Written, spec: ModelSpec) -> None:
        """Adds a tensor."""
        tensor, made = spec.tensors[name], written.made
        part_bytes = sum(part.nbytes for part in written.parts)
        if written.is_kept:
            self.entries[name] = {"action": "kept", "bytes": part_bytes}
            return
        format_name = format_in(spec, name)
        self.entries[name] = {
            "action": "quantized",
            "format": format_name or spec.quantization.float_of(tensor.role, tensor.layer),
            "group_size": spec.quantization.group_size if format_name else None,
            "method": made.method if made else None,
            "tokens": made.tokens if made else None,
            "bytes": part_bytes,
            "relative_error": _relative(written.squared_error, written.squared_values),
        }
        if made and made.fell_back:
            self.fallbacks.append(
                {
                    "tensor": name,
                    "layer": tensor.layer,
                    "expert": tensor.expert,
                    "method": made.method,
                    "tokens": made.tokens,
                    "inputs": written.values_shape[1],
                }
            )
        sums = self.sums.setdefault(tensor.tensor_class, _Sums())
        sums.tensors += 1
        sums.elements += math.prod(written.values_shape)
        sums.code_bytes += written.parts[0].nbytes
        sums.scale_bytes += part_bytes - written.parts[0].nbytes
        sums.squared_error += written.squared_error
        sums.squared_values += written.squared_values


def run(job: Job[QuantizeSettings]) -> None:
    """Writes a checkpoint directory with `quantization.json`.

    Raises:
        CheckpointError: the pruned checkpoint is damaged, or a weight is too large for a scale.
        ResourceError: the disk is too small.
    """
    settings = job.settings
    source, spec = open_checkpoint(job.folders["prune"])
    quantization = _formats(job, spec)
    quantized = replace(spec, quantization=quantization)
    _check_space(job, source, quantized)
    config = source.config | {QUANTIZATION_KEY: quantization.as_config()}
    entries = stored_tensors(quantized)
    ledger = _Ledger()
    with CheckpointWriter(job.out, config, num_shards=spec.num_layers + 1) as writer:
        for number, (layer, found) in enumerate(_layers(job, spec, quantization)):
            what = "outside the layers" if layer is None else f"layer {layer}"
            job.progress(number, spec.num_layers + 1, what)
            names = [name for name, tensor in spec.tensors.items() if tensor.layer == layer]
            layout = {
                entry: (entries[entry].dtype or source.tensors[name].dtype, entries[entry].shape)
                for name in names
                for entry in part_names(quantized, name)
            }
            parts = _parts(names, source, quantized, found, settings.method, ledger)
            writer.stream_shard(layout, parts)
    job.progress(spec.num_layers + 1, spec.num_layers + 1, "done")
    copy_tokenizer_files(job.folders["prune"], job.out)
    written = Checkpoint(job.out)
    check_ledger(written, quantized)
    actions = [entry["action"] for entry in ledger.entries.values()]
    save_json(
        job.out / QUANTIZATION_FILE,
        {
            **quantization.as_config(),
            "method": settings.method,
            "tensor_bytes": sum(info.size_bytes for info in written.tensors.values()),
            "counts": {word: actions.count(word) for word in ("kept", "quantized")},
            "fallbacks": ledger.fallbacks,
            "classes": {name: sums.as_dict() for name, sums in ledger.sums.items()},
            "tensors": ledger.entries,
        },
    )
    for name, sums in ledger.sums.items():
        lost = _relative(sums.squared_error, sums.squared_values)
        logger.info("%s: relative error %.4g", name, lost)
    if ledger.fallbacks:
        logger.warning(
            "%d of %d matrices were reached by fewer tokens than they have inputs and were rounded "
            "with a search for scales instead of %s; quantization.json names them",
            len(ledger.fallbacks),
            actions.count("quantized"),
            settings.method,
        )


def _formats(job: Job[QuantizeSettings], spec: ModelSpec) -> Quantization:
    """The recipe's formats, or the plan's where the recipe leaves the choice to it."""
    settings = job.settings
    if settings.experts != "auto":
        return settings.quantization()
    planned = load_json(job.folders["plan"] / "plan.json")
    return read_quantization(planned, spec.num_layers)


def _layers(
    job: Job[QuantizeSettings], spec: ModelSpec, quantization: Quantization
) -> Iterator[tuple[int | None, Mapping[str, QuantizeResult]]]:
    """The layers in order and None last, with those matrices that calibration makes."""
    settings = job.settings
    if settings.method != "gptq":
        for layer in (*range(spec.num_layers), None):
            yield layer, {}
        return
    from moe_export.fitting.gptq_layers import quantize_by_layer  # noqa: PLC0415 - torch

    calibration = load_calibration(job.folders["calibrate"])
    yield from quantize_by_layer(
        job.folders["prune"],
        quantization,
        evenly_chosen(calibration.sequences(), settings.calibration_tokens),
        settings.damping,
    )


def _parts(
    names: Sequence[str],
    source: Checkpoint,
    spec: ModelSpec,
    found: Mapping[str, QuantizeResult],
    method: Method,
    ledger: _Ledger,
) -> Iterator[NDArray[Any]]:
    """What is written for some tensors, which several threads read and round."""

    def work(name: str) -> _Written:
        values = source.read(name)
        format_name = format_in(spec, name)
        if format_name is None:
            return _in_float(name, values, spec)
        made = found.get(name) or _rounded(name, values, spec, format_name, method)
        lost, norm = native.squared_error(format_name, made.matrix, values)
        parts = tuple(to_storage(made.matrix).values())
        return _Written(
            parts, values.shape, made, is_kept=False, squared_error=lost, squared_values=norm
        )

    sizes = {name: source.tensors[name].size_bytes for name in names}
    for name, written in zip(
        names, prefetched(names, work, sizes.__getitem__, AHEAD_BYTES), strict=True
    ):
        ledger.enter(name, written, spec)
        yield from written.parts


def _in_float(name: str, values: NDArray[Any], spec: ModelSpec) -> _Written:
    """As it is, or in the dtype that its class has of its own."""
    tensor = spec.tensors[name]
    own = spec.quantization.float_of(tensor.role, tensor.layer)
    if own is None:
        return _Written((values,), values.shape, is_kept=True)
    stored = values.astype(own)
    wide = values.astype(np.float64)
    lost = float(np.square(stored.astype(np.float64) - wide).sum())
    return _Written(
        (stored,), values.shape, squared_error=lost, squared_values=float(np.square(wide).sum())
    )


def _rounded(
    name: str, values: NDArray[Any], spec: ModelSpec, format_name: str, method: Method
) -> QuantizeResult:
    """A matrix in the nearest codes."""
    # Nothing is multiplied with embeddings, so that there is nothing to calibrate them by.
    method = "mse" if method == "gptq" else method
    group_size = spec.quantization.group_size
    try:
        matrix = native.quantize(format_name, values, group_size, search=method == "mse")
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return QuantizeResult(matrix, method)


def _relative(squared_error: float, squared_values: float) -> float:
    """Root of the squared error over that of the squared values; 0 where there are no values."""
    return math.sqrt(squared_error / squared_values) if squared_values else 0.0


def _check_space(job: Job[QuantizeSettings], source: Checkpoint, spec: ModelSpec) -> None:
    needed = 0
    for name, stored in stored_tensors(spec).items():
        dtype = stored.dtype or source.tensors[name].dtype
        needed += math.prod(stored.shape) * dtype.itemsize
    require_space(job.out, needed, "the quantized checkpoint")
