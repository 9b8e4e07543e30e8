"""Section of a report about memory: bytes predicted, on disk and held by a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe_export.artifacts.export import Export
from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.ledger import Ledger
from moe_export.artifacts.measurements import Measurements, ProcessMemory
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.report_memory import (
    CacheAtLength,
    CheckpointFacts,
    ClassBytes,
    KvCacheFacts,
    MemoryFacts,
    ResidentMemory,
    UnprunedQuantized,
    VariantMemory,
)
from moe_export.artifacts.stage_mark import StageMark
from moe_export.artifacts.weight_bytes import PlannedBytes, WeightBytes
from moe_export.errors import ArtifactError
from moe_export.families import spec_of
from moe_export.families.base import ModelSpec
from moe_export.families.states import every_head_bytes, fixed_bytes, token_bytes
from moe_export.formats import GRIDS
from moe_export.op.spec import Dtype, uses_panels
from moe_export.ort.execution import PORTABLE_PATH
from moe_export.ort.predicted_memory import (
    folded_bytes,
    kv_cache_bytes,
    library_roles,
    predicted_resident,
    widened_bytes,
)
from moe_export.reporting.build_plan import read_config
from moe_export.reporting.sizes import CONTEXTS
from moe_export.variants import BASELINE, DATA_FILE, MODEL_FILE, ordered


def memory_facts(
    folders: Mapping[str, Path],
    plan: Plan,
    export: Export,
    ledger: Ledger,
    measurements: Measurements,
) -> MemoryFacts:
    """Gathers the bytes of all variants; the unpruned model is always among them.

    Args:
        folders: folder of each stage by its name.
        plan: predicted bytes.
        export: exported models.
        ledger: account of the prune stage.
        measurements: memory and speed.
    """
    planned = plan.export_bytes[export.dtype]
    names = {BASELINE, *export.variants, *(entry.variant for entry in measurements.memory)}
    spec = spec_of(read_config(folders["prune"]))
    return MemoryFacts(
        dtype=export.dtype,
        variants=tuple(
            _variant(name, folders["export"] / name, planned.of(name), export, measurements)
            for name in ordered(names)
        ),
        unpruned_quantized=_unpruned_quantized(planned.before_quantized),
        kv_cache=_kv_cache(spec, export.dtype),
        checkpoint=CheckpointFacts(
            predicted_tensor_bytes=plan.checkpoint_tensor_bytes,
            tensor_bytes=ledger.tensor_bytes,
            tensors_kept=ledger.counts.kept,
            tensors_sliced=ledger.counts.sliced,
            tensors_dropped=ledger.counts.dropped,
        ),
    )


def _kv_cache(spec: ModelSpec, dtype: Dtype) -> KvCacheFacts:
    """Predicts the memory of a sequence, which pruning does not change."""
    longest = spec.max_positions
    per_token = every_head_bytes(spec, dtype)
    return KvCacheFacts(
        context_tokens=longest,
        cache_bytes=kv_cache_bytes(spec, dtype, longest),
        bytes_per_token=token_bytes(spec, dtype),
        fixed_bytes=fixed_bytes(spec, dtype),
        lengths=tuple(
            CacheAtLength(
                tokens=tokens,
                cache_bytes=kv_cache_bytes(spec, dtype, tokens),
                every_head_bytes=None if per_token is None else per_token * tokens,
            )
            for tokens in (*(length for length in CONTEXTS if length < longest), longest)
        ),
    )


def _variant(
    name: str,
    folder: Path,
    planned: PlannedBytes | None,
    export: Export,
    measurements: Measurements,
) -> VariantMemory:
    """Gathers the bytes of one variant; None stands for what was not exported or predicted."""
    written = export.variants.get(name)
    weights = written.weights if written else planned
    if weights is None:
        raise ArtifactError(
            f"variant {name} was measured, but neither the plan nor the export has it; run from "
            "the plan stage"
        )
    planned_bytes = planned.total_bytes if planned else None
    on_disk = _size(folder / DATA_FILE) if written else None
    resident = predicted_resident(sum(weights.by_class.values()))
    if written:
        resident += _converted_bytes(name, folder, export, measurements)
    return VariantMemory(
        variant=name,
        format=format_words(written.quantization if written else None, export.dtype),
        weights_bytes=weights.total_bytes if on_disk is None else on_disk,
        predicted_weights_bytes=planned_bytes,
        disk_weights_bytes=on_disk,
        active_bytes_per_token=planned.active_bytes_per_token if planned else None,
        graph_bytes=_size(folder / MODEL_FILE) if written else None,
        nodes=written.nodes if written else None,
        classes=_classes(weights),
        predicted_resident_bytes=resident,
        resident=tuple(_resident(entry) for entry in measurements.memory if entry.variant == name),
    )


def _converted_bytes(name: str, folder: Path, export: Export, measurements: Measurements) -> int:
    """Returns the bytes that a variant takes because the CPU computes in float32."""
    paths = {entry.path for entry in measurements.speed if entry.variant == name}
    is_portable = PORTABLE_PATH in paths
    is_folded = is_portable and export.variants[name].quantization is not None
    if export.dtype != "float16" and not is_folded:
        return 0
    spec = spec_of(read_config(folder))
    exported_by = StageMark.load(folder.parent).identity.settings
    panels = uses_panels(exported_by.get("layout", "portable"), exported_by.get("linear", "auto"))
    in_library = library_roles(native=not is_portable, panels=panels)
    widened = widened_bytes(spec, export.dtype, in_library)
    return widened + (folded_bytes(spec) if is_folded else 0)


def _classes(weights: WeightBytes) -> tuple[ClassBytes, ...]:
    return tuple(
        ClassBytes(name=name, weights_bytes=count) for name, count in weights.by_class.items()
    )


def _resident(entry: ProcessMemory) -> ResidentMemory:
    return ResidentMemory(
        provider=entry.provider,
        load_peak_bytes=entry.load_peak_bytes,
        steady_resident_bytes=entry.steady_resident_bytes,
        device_loaded_bytes=entry.device_loaded_bytes,
        device_peak_bytes=entry.device_peak_bytes,
        device_kv_cache_bytes=entry.device_kv_cache_bytes,
    )


def _unpruned_quantized(planned: PlannedBytes | None) -> UnprunedQuantized:
    return UnprunedQuantized(
        weights_bytes=planned.total_bytes if planned else None,
        active_bytes_per_token=planned.active_bytes_per_token if planned else None,
        classes=_classes(planned) if planned else (),
    )


def format_words(formats: TensorFormats | None, dtype: str) -> str:
    """Describes the formats of a variant's weights.

    Args:
        formats: formats by class of tensors; None if nothing is quantized.
        dtype: dtype of everything that is not quantized.
    """
    if formats is None:
        return dtype
    by_class = {
        "experts": formats.experts,
        "attention and lm_head" if formats.lm_head is None else "attention": formats.dense,
        "lm_head": formats.lm_head or "float",
        "embeddings": formats.embedding,
    }
    parts = [f"{name} {_words(word)}" for name, word in by_class.items() if word != "float"]
    names = {
        name for word in by_class.values() for name in ([word] if isinstance(word, str) else word)
    }
    groups = f" in groups of {formats.group_size}" if names & GRIDS.keys() else ""
    return f"{', '.join(parts)}{groups}, else {dtype}"


def _words(formats: str | tuple[str, ...]) -> str:
    """Names one format, or counts the layers of each.

    >>> _words("int8"), _words(("int4", "int4", "int8"))
    ('int8', 'int4 in 2 layers, int8 in 1 layer')
    """
    if isinstance(formats, str):
        return formats
    counts = ((word, formats.count(word)) for word in dict.fromkeys(formats))
    return ", ".join(f"{word} in {n} layer{'s' if n > 1 else ''}" for word, n in counts)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path} is missing; run the export stage again") from error
