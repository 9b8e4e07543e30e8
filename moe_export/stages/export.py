"""The pruned checkpoint, the quantized one, and the source where asked for, as ONNX models that run
on their own.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json, save_json
from moe_export.checkpoint import write_json
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import ArtifactError, CheckpointError
from moe_export.families import open_checkpoint
from moe_export.graph import (
    CONFIG_FILE,
    DATA_FILE,
    MODEL_FILE,
    build_decoder,
    genai_config,
    predicted_bytes,
    save_model,
)
from moe_export.op.library import library_path
from moe_export.op.spec import Dtype, Layout
from moe_export.recipe import ExportSettings
from moe_export.stages.job import Job
from moe_export.system.disk import disk_error, require_space
from moe_export.variants import BASELINE, PLANNED, PRUNED, QUANTIZED

logger = logging.getLogger(__name__)

EXPORT_FILE = "export.json"
BESIDE_WEIGHTS_BYTES = 64 << 20
"""Free space asked for beside the weights: the graph and the tokenizer."""


def run(job: Job[ExportSettings]) -> None:
    """Writes `pruned/`, `quantized/` and `baseline/` where asked for, and `export.json` over all.

    Raises:
        CheckpointError: a checkpoint is incomplete, unknown or has no tokenizer.json.
        ResourceError: the disk is too small.
        ArtifactError: the weights do not have the size that the plan predicted.
    """
    dtype = job.settings.dtype
    variants = {PRUNED: job.folders["prune"]} if job.settings.pruned else {}
    if "quantize" in job.folders:
        variants[QUANTIZED] = job.folders["quantize"]
    if job.settings.baseline:
        variants[BASELINE] = job.model
    planned = load_json(job.folders["plan"] / "plan.json")["export_bytes"][dtype]
    facts = {}
    for variant, checkpoint in variants.items():
        facts[variant] = export_model(
            checkpoint,
            job.out / variant,
            dtype,
            partial(job.progress, what=variant),
            library=job.settings.library,
            layout=job.settings.layout,
        )
        found = facts[variant]["data_bytes"]
        expected = planned[PLANNED[variant]]["total_bytes"]
        if found != expected:
            raise ArtifactError(
                f"{job.out / variant / DATA_FILE}: {found} bytes, the plan predicted {expected}; "
                "run again from the plan stage"
            )
    save_json(job.out / EXPORT_FILE, {"dtype": dtype, "variants": facts})


def export_model(
    checkpoint_dir: Path,
    out_dir: Path,
    dtype: Dtype,
    progress: Callable[[int, int], None] | None = None,
    *,
    library: bool = False,
    layout: Layout = "portable",
) -> dict[str, Any]:
    """Writes one checkpoint as an ONNX model with its tokenizer and `genai_config.json`.

    Args:
        checkpoint_dir: pruned and quantized or not.
        out_dir: created; must not hold anything yet.
        dtype: of the exported model, but for what is quantized.
        progress: called with weights written and weights in all.
        library: whether the native operator library is copied beside it.
        layout: of the experts' weights.

    Returns:
        Sizes and counts, as in `export.json`.

    Raises:
        CheckpointError: the checkpoint is incomplete, unknown or has no tokenizer.json.
        ResourceError: the disk is too small.
        DependencyError: the library is asked for, or has to pack, and is not installed.
    """
    source = library_path() if library else None
    checkpoint, spec = open_checkpoint(checkpoint_dir)
    if not (checkpoint_dir / "tokenizer.json").exists():
        raise CheckpointError(
            f"{checkpoint_dir / 'tokenizer.json'} is missing, without it the exported model cannot "
            "be run; convert the tokenizer with transformers (AutoTokenizer, save_pretrained)"
        )
    predicted = predicted_bytes(spec, dtype, layout)
    _make_room(out_dir, predicted.total_bytes + BESIDE_WEIGHTS_BYTES)
    model = build_decoder(spec, dtype, checkpoint, layout)
    save_model(model, out_dir, progress)
    copy_tokenizer_files(checkpoint_dir, out_dir)
    write_json(out_dir / "config.json", checkpoint.config)
    if source is not None:
        _copy_library(source, out_dir)
    generation = _generation(checkpoint_dir)
    library_name = source.name if source is not None else None
    write_json(
        out_dir / CONFIG_FILE, genai_config(spec, checkpoint.config, generation, library_name)
    )
    data_bytes = (out_dir / DATA_FILE).stat().st_size
    logger.info("%s: %d bytes of weights, %d nodes", out_dir, data_bytes, len(model.graph))
    return {
        "nodes": len(model.graph),
        "quantization": None if spec.quantization.is_float else spec.quantization.as_config(),
        "weights": predicted.as_dict(),
        "data_bytes": data_bytes,
        "graph_bytes": (out_dir / MODEL_FILE).stat().st_size,
    }


def _copy_library(source: Path, out_dir: Path) -> None:
    try:
        shutil.copyfile(source, out_dir / source.name)
    except OSError as error:
        raise disk_error(error, out_dir / source.name) from error


def _make_room(out_dir: Path, needed_bytes: int) -> None:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out_dir) from error
    require_space(out_dir, needed_bytes, "the export")


def _generation(checkpoint_dir: Path) -> dict[str, Any]:
    path = checkpoint_dir / "generation_config.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content
