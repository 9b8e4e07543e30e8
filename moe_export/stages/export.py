"""The export stage: the pruned, the quantized and the source checkpoint as ONNX models.

Each model stands alone, with its tokenizer and `genai_config.json`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from moe_export.artifacts.export import Export, ExportedModel
from moe_export.artifacts.formats import TensorFormats
from moe_export.artifacts.plan import Plan
from moe_export.artifacts.weight_bytes import WeightBytes
from moe_export.checkpoint import write_json
from moe_export.documents.exported_tokenizer import state_special_tokens
from moe_export.documents.generation_file import generation_settings
from moe_export.documents.licence_files import copy_licence_files
from moe_export.documents.listed_templates import separate_listed_templates
from moe_export.documents.tokenizer_files import copy_tokenizer_files
from moe_export.errors import ArtifactError, CheckpointError
from moe_export.families import open_checkpoint, spec_of
from moe_export.families.base import PRUNED_PREFIX, SHARED_WIDTHS_KEY, WIDTHS_KEY, ModelSpec
from moe_export.graph import (
    CONFIG_FILE,
    build_decoder,
    genai_config,
    predicted_bytes,
    save_model,
)
from moe_export.graph.external_data import save_graph
from moe_export.graph.metadata import model_metadata
from moe_export.graph.web import CONFIG_KEY, check_web, web_config, web_dtype, web_file
from moe_export.graph.web import FOLDER as WEB_FOLDER
from moe_export.op.library import library_files
from moe_export.op.platforms import PlatformName
from moe_export.op.spec import Dtype, Layout, LinearWord
from moe_export.recipe import ExportSettings
from moe_export.reporting.card import ExportFacts, Pruning, export_card, write_card
from moe_export.reporting.card_source import source_of
from moe_export.stages.job import Job
from moe_export.system.disk import disk_error, require_space
from moe_export.variants import BASELINE, DATA_FILE, MODEL_FILE, PRUNED, QUANTIZED

logger = logging.getLogger(__name__)

BESIDE_WEIGHTS_BYTES = 64 << 20
"""Free space for the graph and the tokenizer, beside the weights."""


def run(job: Job[ExportSettings]) -> None:
    """Writes the models that the recipe asks for, one folder each, and their sizes.

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
    plan = Plan.load(job.folders["plan"])
    models = {}
    for variant, checkpoint in variants.items():
        models[variant] = export_model(
            checkpoint,
            job.out / variant,
            dtype,
            partial(job.progress, what=variant),
            library=job.settings.library,
            platforms=job.settings.platforms,
            wheels=None if job.settings.wheels is None else Path(job.settings.wheels),
            layout=job.settings.layout,
            linear=job.settings.linear,
            source=job.origin,
            web=bool(job.settings.web),
            genai_provider=job.settings.genai_provider,
        )
        planned = plan.bytes_of(variant, dtype)
        if planned is None or models[variant].data_bytes != planned.total_bytes:
            expected = "none of it" if planned is None else planned.total_bytes
            raise ArtifactError(
                f"{job.out / variant / DATA_FILE}: {models[variant].data_bytes} bytes, the plan "
                f"predicted {expected}; run again from the plan stage"
            )
    Export(dtype=dtype, variants=models).save(job.out)


def export_model(
    checkpoint_dir: Path,
    out_dir: Path,
    dtype: Dtype,
    progress: Callable[[int, int], None] | None = None,
    *,
    library: bool = False,
    platforms: Sequence[PlatformName] | None = None,
    wheels: Path | None = None,
    layout: Layout = "portable",
    linear: LinearWord = "auto",
    source: Path | None = None,
    web: bool = False,
    genai_provider: str | None = None,
) -> ExportedModel:
    """Writes one checkpoint as an ONNX model with its tokenizer, `genai_config.json` and card.

    Args:
        checkpoint_dir: folder of the source, pruned or quantized checkpoint.
        out_dir: folder of the model; it is created and must be empty.
        dtype: dtype of everything that is not quantized.
        progress: function that is called with the weights written and all weights, in tensors.
        library: True if the native operator library is copied beside the model.
        platforms: platforms whose libraries are copied, each under a name of its own; the library
            of this machine under its bare name if None.
        wheels: folder of wheels of moe-export-ops, for platforms other than this machine's.
        layout: layout of the experts' weights.
        linear: nodes of the matrices outside the experts.
        source: folder of the checkpoint that the model was made from, whose name and licence the
            card states; `checkpoint_dir` if None.
        web: True if the model gets the names of transformers.js too.
        genai_provider: execution provider that `genai_config.json` names; None for the CPU.

    Returns:
        Sizes and counts of the model.

    Raises:
        CheckpointError: the checkpoint is incomplete, unknown or has no tokenizer.json.
        ResourceError: the disk is too small.
        DependencyError: the library is to be copied or to pack weights, and is not installed, or
            that of another platform is not in `wheels`.
        RecipeError: `web` is asked for, and transformers.js has no class for the family.
    """
    checkpoint, spec = open_checkpoint(checkpoint_dir)
    libraries = library_files(platforms, wheels) if library else {}
    if not (checkpoint_dir / "tokenizer.json").exists():
        raise CheckpointError(
            f"{checkpoint_dir / 'tokenizer.json'} is missing, without it the exported model cannot "
            "be run; convert the tokenizer with transformers (AutoTokenizer, save_pretrained)"
        )
    if web:
        check_web(spec)
    predicted = predicted_bytes(spec, dtype, layout, linear)
    _make_room(out_dir, predicted.total_bytes * (1 + web) + BESIDE_WEIGHTS_BYTES)
    origin = source_of(source or checkpoint_dir)
    pruning = Pruning.of(spec, unpruned_spec(checkpoint.config))
    model = build_decoder(spec, dtype, checkpoint, layout, linear)
    model.metadata_props.update(
        model_metadata(spec, layout, origin.name, pruning.kept, pruning.whole)
    )
    save_model(model, out_dir, progress)
    copy_tokenizer_files(checkpoint_dir, out_dir)
    separate_listed_templates(out_dir)
    start = state_special_tokens(out_dir)
    config = family_config(checkpoint.config, spec)
    if web:
        word = web_dtype(spec.quantization, dtype)
        config |= {CONFIG_KEY: web_config(word, dtype)}
        _write_web_names(model, out_dir, web_file(word))
    write_json(out_dir / "config.json", config)
    for name, content in libraries.items():
        _write_library(content, out_dir / name)
    library_name = next(iter(libraries), None)
    generation = generation_settings(checkpoint_dir)
    genai = genai_config(spec, checkpoint.config, generation, library_name, genai_provider)
    write_json(out_dir / CONFIG_FILE, genai)
    data_bytes = (out_dir / DATA_FILE).stat().st_size
    end = genai["model"].get("eos_token_id", [])
    card = export_card(
        ExportFacts(
            source=origin,
            spec=spec,
            pruning=pruning,
            dtype=dtype,
            layout=layout,
            library=library_name,
            platforms=tuple(platforms or ()) if library else (),
            data_bytes=data_bytes,
            start=start,
            ends=end if isinstance(end, list) else [end],
            licence_files=copy_licence_files(source or checkpoint_dir, out_dir),
            web=web,
        )
    )
    write_card(out_dir, card)
    logger.info("%s: %d bytes of weights, %d nodes", out_dir, data_bytes, len(model.graph))
    return ExportedModel(
        nodes=len(model.graph),
        quantization=None if spec.quantization.is_float else TensorFormats.of(spec.quantization),
        weights=WeightBytes(
            total_bytes=predicted.total_bytes,
            by_class=predicted.by_class,
            experts_by_layer=predicted.experts_by_layer,
        ),
        data_bytes=data_bytes,
        graph_bytes=(out_dir / MODEL_FILE).stat().st_size,
    )


def family_config(config: dict[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """Config of an exported model under its family's own name, which stock loaders know.

    The widths of the experts stay beside it. No weights are loaded by this config.
    """
    family = spec.family
    return config | {"model_type": family.model_type, "architectures": [family.architecture]}


def unpruned_spec(config: dict[str, Any]) -> ModelSpec:
    """Sizes of a model before it was pruned, from the config of the pruned one."""
    name = str(config["model_type"]).removeprefix(PRUNED_PREFIX)
    widths = (WIDTHS_KEY, SHARED_WIDTHS_KEY)
    return spec_of({key: config[key] for key in config if key not in widths} | {"model_type": name})


def _write_web_names(model: ir.Model, out_dir: Path, name: str) -> None:
    """Writes the graph once more under the name of transformers.js, with its weights beside it."""
    folder = out_dir / WEB_FOLDER
    weights = folder / f"{name}_data"
    try:
        folder.mkdir(exist_ok=True)
        # No link: onnx reads no weights through one.
        shutil.copyfile(out_dir / DATA_FILE, weights)
    except OSError as error:
        raise disk_error(error, weights) from error
    save_graph(model, folder / name, weights.name)


def _write_library(content: bytes, path: Path) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise disk_error(error, path) from error


def _make_room(out_dir: Path, needed_bytes: int) -> None:
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out_dir) from error
    require_space(out_dir, needed_bytes, "the export")
