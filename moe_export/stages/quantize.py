"""The quantize stage: the pruned checkpoint with its large matrices in fewer bits.

Legend: K inputs, N outputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.quantization import (
    Fallback,
    KeptTensor,
    QuantizationRecord,
    QuantizedClass,
    QuantizedCounts,
    QuantizedTensor,
    StoredTensor,
)
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import ArtifactError, CheckpointError
from moe_export.families import check_tensors, open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.families.quantized import in_formats, quantized_config, rounded_from
from moe_export.families.stored import format_in, part_names, stored_tensors
from moe_export.formats.storage import to_storage
from moe_export.op import rounding as native
from moe_export.quantization import Method, Quantization, QuantizeResult
from moe_export.recipe import QuantizeSettings
from moe_export.stages.job import Job
from moe_export.system.disk import require_space
from moe_export.system.prefetch import AHEAD_BYTES, prefetched

logger = logging.getLogger(__name__)


@dataclass
class _Sums:
    """Sums over the quantized tensors of one class.

    Attributes:
        tensors: number of tensors.
        elements: number of their values.
        code_bytes: bytes of codes.
        scale_bytes: bytes of scales and zero points.
        squared_error: sum of the squared errors.
        squared_values: sum of the squared values.
    """

    tensors: int = 0
    elements: int = 0
    code_bytes: int = 0
    scale_bytes: int = 0
    squared_error: float = 0.0
    squared_values: float = 0.0

    def add(self, written: _Written) -> None:
        """Adds one tensor."""
        codes, *others = (part.nbytes for part in written.parts)
        self.tensors += 1
        self.elements += math.prod(written.values_shape)
        self.code_bytes += codes
        self.scale_bytes += sum(others)
        self.squared_error += written.squared_error
        self.squared_values += written.squared_values

    def record(self) -> QuantizedClass:
        """Returns the sums as they are stored."""
        return QuantizedClass(
            tensors=self.tensors,
            elements=self.elements,
            code_bytes=self.code_bytes,
            scale_bytes=self.scale_bytes,
            relative_error=_relative(self.squared_error, self.squared_values),
        )


@dataclass(frozen=True)
class _Written:
    """One tensor as it is written.

    Attributes:
        parts: arrays that are written, in order.
        values_shape: shape of the tensor as it was.
        made: codes and the method that made them; None for a float format.
        is_kept: True if the tensor is written as it was.
        squared_error: sum of the squared errors of the values.
        squared_values: sum of the squared values.
    """

    parts: tuple[NDArray[Any], ...]
    values_shape: tuple[int, ...]
    made: QuantizeResult | None = None
    is_kept: bool = False
    squared_error: float = 0.0
    squared_values: float = 0.0


@dataclass
class _Outcome:
    """The outcome of the tensors that have been written so far.

    Attributes:
        tensors: outcome of each tensor, by name.
        sums: sums by class of tensors.
        fallbacks: matrices that another method rounded than the recipe asks for.
    """

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    sums: dict[str, _Sums] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)

    def add(self, name: str, written: _Written, spec: ModelSpec) -> None:
        """Adds one tensor."""
        part_bytes = sum(part.nbytes for part in written.parts)
        if written.is_kept:
            self.tensors[name] = KeptTensor(action="kept", bytes=part_bytes)
            return
        tensor, made = spec.tensors[name], written.made
        self.tensors[name] = _quantized(name, written, spec, part_bytes)
        self.sums.setdefault(tensor.tensor_class, _Sums()).add(written)
        if made and made.fell_back:
            self.fallbacks.append(
                Fallback(
                    tensor=name,
                    layer=tensor.layer,
                    expert=tensor.expert,
                    method=made.method,
                    tokens=made.tokens,
                    inputs=written.values_shape[1],
                )
            )

    def count(self, action: str) -> int:
        """Returns the number of tensors with an action, `kept` or `quantized`."""
        return sum(tensor.action == action for tensor in self.tensors.values())

    def record(
        self, quantization: Quantization, method: Method, tensor_bytes: int
    ) -> QuantizationRecord:
        """Returns the outcome as it is stored.

        Args:
            quantization: formats of the checkpoint.
            method: rounding method of the recipe.
            tensor_bytes: bytes of all tensors of the written checkpoint.
        """
        return QuantizationRecord(
            **vars(quantization),
            method=method,
            tensor_bytes=tensor_bytes,
            counts=QuantizedCounts(kept=self.count("kept"), quantized=self.count("quantized")),
            fallbacks=tuple(self.fallbacks),
            classes={name: sums.record() for name, sums in self.sums.items()},
            tensors=self.tensors,
        )


def _quantized(name: str, written: _Written, spec: ModelSpec, part_bytes: int) -> QuantizedTensor:
    tensor, made = spec.tensors[name], written.made
    codes = format_in(spec, name)
    stored = codes or spec.quantization.float_of(tensor.role, tensor.layer)
    assert stored is not None, name
    return QuantizedTensor(
        action="quantized",
        format=stored,
        group_size=spec.quantization.group_size if codes else None,
        method=made.method if made else None,
        tokens=made.tokens if made else None,
        bytes=part_bytes,
        relative_error=_relative(written.squared_error, written.squared_values),
    )


def run(job: Job[QuantizeSettings]) -> None:
    """Writes the quantized checkpoint and the record of its errors.

    Raises:
        CheckpointError: the pruned checkpoint is damaged, or a weight is too large for a scale.
        ResourceError: the disk is too small.
    """
    settings = job.settings
    source, spec = open_checkpoint(job.folders["prune"])
    quantization = _formats(job, spec)
    quantized = in_formats(spec, quantization)
    _check_space(job, source, quantized)
    config = quantized_config(source.config, spec, quantized)
    entries = stored_tensors(quantized)
    outcome = _Outcome()
    with CheckpointWriter(job.out, config, num_shards=spec.num_layers + 1) as writer:
        for number, (layer, calibrated) in enumerate(_layers(job, spec, quantization)):
            what = "outside the layers" if layer is None else f"layer {layer}"
            job.progress(number, spec.num_layers + 1, what)
            sources = {
                name: rounded_from(spec, name)
                for name, tensor in quantized.tensors.items()
                if tensor.layer == layer
            }
            layout = {
                entry: (entries[entry].dtype or source.tensors[read].dtype, entries[entry].shape)
                for name, read in sources.items()
                for entry in part_names(quantized, name)
            }
            parts = _parts(sources, source, quantized, calibrated, settings.method, outcome)
            writer.stream_shard(layout, parts)
    job.progress(spec.num_layers + 1, spec.num_layers + 1, "done")
    copy_tokenizer_files(job.folders["prune"], job.out)
    written = Checkpoint(job.out)
    check_tensors(written, quantized)
    tensor_bytes = sum(info.size_bytes for info in written.tensors.values())
    record = outcome.record(quantization, settings.method, tensor_bytes)
    record.save(job.out)
    _log(record)


def _log(record: QuantizationRecord) -> None:
    for name, sums in record.classes.items():
        logger.info("%s: relative error %.4g", name, sums.relative_error)
    if record.fallbacks:
        logger.warning(
            "%d of %d matrices were reached by fewer tokens than they have inputs and were rounded "
            "with a search for scales instead of %s; %s names them",
            len(record.fallbacks),
            record.counts.quantized,
            record.method,
            record.FILE,
        )


def _formats(job: Job[QuantizeSettings], spec: ModelSpec) -> Quantization:
    """Returns the recipe's formats, or the plan's if the recipe leaves the choice to it.

    Raises:
        ArtifactError: the plan has no formats, or not one for each layer.
    """
    settings = job.settings
    if settings.experts != "auto":
        return settings.quantization()
    formats = Plan.load(job.folders["plan"]).quantization
    experts = None if formats is None else formats.experts
    if formats is None or (isinstance(experts, tuple) and len(experts) != spec.num_layers):
        raise ArtifactError(
            f"{job.folders['plan'] / Plan.FILE}: the plan has not chosen a format for each of "
            f"{spec.num_layers} layers; run again from the plan stage"
        )
    return formats.quantization


def _layers(
    job: Job[QuantizeSettings], spec: ModelSpec, quantization: Quantization
) -> Iterator[tuple[int | None, Mapping[str, QuantizeResult]]]:
    """Yields each layer and then None, with the matrices that calibration has made for it."""
    settings = job.settings
    if settings.method != "gptq":
        for layer in (*range(spec.num_layers), None):
            yield layer, {}
        return
    from moe_export.fitting.gptq_layers import quantize_by_layer  # noqa: PLC0415 - torch

    calibration = Calibration.load(job.folders["calibrate"])
    yield from quantize_by_layer(
        job.folders["prune"],
        quantization,
        calibration.sample(settings.calibration_tokens),
        settings.damping,
    )


def _parts(
    sources: Mapping[str, str],
    source: Checkpoint,
    spec: ModelSpec,
    calibrated: Mapping[str, QuantizeResult],
    method: Method,
    outcome: _Outcome,
) -> Iterator[NDArray[Any]]:
    """Yields the arrays to write for some tensors, which several threads read and round.

    Args:
        sources: name of the tensor in the pruned checkpoint for each tensor to write.
        source: the pruned checkpoint.
        spec: the quantized model.
        calibrated: matrices that calibration has made, by name.
        method: rounding method of the recipe.
        outcome: outcome that the tensors are added to.
    """

    def work(name: str) -> _Written:
        values = source.read(sources[name])
        format_name = format_in(spec, name)
        if format_name is None:
            return _in_float(name, values, spec)
        made = calibrated.get(name) or _rounded(name, values, spec, format_name, method)
        lost, norm = native.squared_error(format_name, made.matrix, values)
        parts = tuple(to_storage(made.matrix).values())
        return _Written(
            parts, values.shape, made, is_kept=False, squared_error=lost, squared_values=norm
        )

    names = list(sources)
    sizes = {name: source.tensors[read].size_bytes for name, read in sources.items()}
    for name, written in zip(
        names, prefetched(names, work, sizes.__getitem__, AHEAD_BYTES), strict=True
    ):
        outcome.add(name, written, spec)
        yield from written.parts


def _in_float(name: str, values: NDArray[Any], spec: ModelSpec) -> _Written:
    """A tensor as it is, or cast to the dtype of its class if that has one."""
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
    """A matrix rounded without calibration."""
    # Embeddings are looked up, not multiplied, so there are no inputs to calibrate them with.
    method = "mse" if method == "gptq" else method
    group_size = spec.quantization.group_size
    try:
        matrix = native.quantize(format_name, values, group_size, search=method == "mse")
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return QuantizeResult(matrix, method)


def _relative(squared_error: float, squared_values: float) -> float:
    """Root of squared error over squared values; 0 if all values are 0."""
    return math.sqrt(squared_error / squared_values) if squared_values else 0.0


def _check_space(job: Job[QuantizeSettings], source: Checkpoint, spec: ModelSpec) -> None:
    needed = 0
    for name, stored in stored_tensors(spec).items():
        dtype = stored.dtype or source.tensors[name].dtype
        needed += math.prod(stored.shape) * dtype.itemsize
    require_space(job.out, needed, "the quantized checkpoint")
