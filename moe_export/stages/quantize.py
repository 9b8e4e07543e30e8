"""The pruned checkpoint with its large matrices in fewer bits, layer by layer.

Legend: K inputs, N outputs.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from moe_export.artifacts import evenly_chosen, load_calibration, load_json, save_json
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.errors import CheckpointError, ResourceError
from moe_export.families import check_ledger, open_checkpoint
from moe_export.families.base import ModelSpec
from moe_export.families.stored import format_in, stored_tensors
from moe_export.formats.blocks import quantize_in_blocks, squared_error
from moe_export.formats.storage import to_storage
from moe_export.jobs import Job
from moe_export.quantization import QUANTIZATION_KEY, Made, Method, Quantization, read_quantization
from moe_export.recipe import QuantizeSettings
from moe_export.tokenizer_files import copy_tokenizer_files

logger = logging.getLogger(__name__)

QUANTIZATION_FILE = "quantization.json"


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


@dataclass
class _Ledger:
    """What became of every tensor."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    sums: dict[str, _Sums] = field(default_factory=dict)
    fallbacks: list[dict[str, Any]] = field(default_factory=list)


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
    ledger = _Ledger()
    with CheckpointWriter(job.out, config, num_shards=spec.num_layers + 1) as writer:
        for number, (layer, found) in enumerate(_layers(job, spec, quantization)):
            what = "outside the layers" if layer is None else f"layer {layer}"
            job.progress(number, spec.num_layers + 1, what)
            shard: dict[str, NDArray[Any]] = {}
            for name, tensor in spec.tensors.items():
                if tensor.layer == layer:
                    values = source.read(name)
                    made = found.get(name) or _rounded(name, values, quantized, settings.method)
                    shard |= _stored(name, values, made, quantized, ledger)
            writer.write_shard(shard)
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
) -> Iterator[tuple[int | None, Mapping[str, Made]]]:
    """The layers in order and None last, with those matrices that calibration makes."""
    settings = job.settings
    if settings.method != "gptq":
        for layer in (*range(spec.num_layers), None):
            yield layer, {}
        return
    from moe_export.torch_model.gptq import quantize_by_layer  # noqa: PLC0415 - torch

    calibration = load_calibration(job.folders["calibrate"])
    yield from quantize_by_layer(
        job.folders["prune"],
        quantization,
        evenly_chosen(calibration.sequences(), settings.calibration_tokens),
        settings.damping,
    )


def _rounded(name: str, values: NDArray[Any], spec: ModelSpec, method: Method) -> Made | None:
    """A matrix in the nearest codes; None where it is not to be quantized."""
    format_name = format_in(spec, name)
    if format_name is None:
        return None
    # Nothing is multiplied with embeddings, so that there is nothing to calibrate them by.
    method = "mse" if method == "gptq" else method
    try:
        matrix = quantize_in_blocks(
            format_name, values.T, spec.quantization.group_size, "float16", search=method == "mse"
        )
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return Made(matrix, method)


def _stored(
    name: str, values: NDArray[Any], made: Made | None, spec: ModelSpec, ledger: _Ledger
) -> dict[str, NDArray[Any]]:
    """What is written for one tensor, entered into the ledger."""
    tensor = spec.tensors[name]
    if made is None:
        ledger.entries[name] = {"action": "kept", "bytes": values.nbytes}
        return {name: values}
    parts = {name + suffix: part for suffix, part in to_storage(made.matrix).items()}
    part_bytes = sum(part.nbytes for part in parts.values())
    lost, norm = squared_error(made.matrix, values.T)
    ledger.entries[name] = {
        "action": "quantized",
        "format": format_in(spec, name),
        "group_size": spec.quantization.group_size,
        "method": made.method,
        "tokens": made.tokens,
        "bytes": part_bytes,
        "relative_error": _relative(lost, norm),
    }
    if made.fell_back:
        ledger.fallbacks.append(
            {
                "tensor": name,
                "layer": tensor.layer,
                "expert": tensor.expert,
                "method": made.method,
                "tokens": made.tokens,
                "inputs": values.shape[1],
            }
        )
    sums = ledger.sums.setdefault(tensor.tensor_class, _Sums())
    sums.tensors += 1
    sums.elements += values.size
    sums.code_bytes += parts[name].nbytes
    sums.scale_bytes += part_bytes - parts[name].nbytes
    sums.squared_error += lost
    sums.squared_values += norm
    return parts


def _relative(squared_error: float, squared_values: float) -> float:
    """Root of the squared error over that of the squared values; 0 where there are no values."""
    return math.sqrt(squared_error / squared_values) if squared_values else 0.0


def _check_space(job: Job[QuantizeSettings], source: Checkpoint, spec: ModelSpec) -> None:
    needed = 0
    for name, stored in stored_tensors(spec).items():
        dtype = stored.dtype or source.tensors[name].dtype
        needed += math.prod(stored.shape) * dtype.itemsize
    free = shutil.disk_usage(job.out).free
    if needed > free:
        raise ResourceError(
            f"{job.out}: the quantized checkpoint needs {needed} bytes, the disk has {free} free; "
            "free some, or give a run directory on another disk with --run"
        )
