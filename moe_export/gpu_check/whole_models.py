"""Whole models of the shapes of Qwen1.5-MoE-A2.7B in ONNX Runtime: dense, pruned, and in int4.

Weights are random and so are widths, 704 on average as with half of the dimensions: the figures
say nothing about accuracy. The package makes, quantizes and exports checkpoints of two numbers of
layers; the time of 24 layers is extrapolated from theirs, as all layers take equally long. The
bytes of 24 layers follow from the config.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.families import spec_of
from moe_export.families.base import PRUNED_PREFIX, WIDTHS_KEY
from moe_export.families.quantized import in_formats
from moe_export.gpu_check.apart import Apart, ApartError
from moe_export.graph import predicted_bytes
from moe_export.op.spec import Dtype
from moe_export.recipe import QuantizeSettings
from moe_export.stages import quantize
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.testing.layer_sizes import skewed_widths
from moe_export.testing.synthetic_checkpoint import config_of, make
from moe_export.variants import DATA_FILE

FAMILY, SIZE, ALL_LAYERS = "qwen2_moe", "qwen1.5-moe-a2.7b", 24
DTYPE: Dtype = "float16"
DENSE, HALF, INT4 = "dense", "50 %", "50 % int4"
FOLDERS = {DENSE: "dense", HALF: "half", INT4: "int4"}
FORMATS = QuantizeSettings(experts="int4", group_size=128)
"""Formats of the model in int4; its shared expert is in int4 as well."""

BATCHES = (1, 8, 64)
MOST_S = 120
"""Seconds after which a model is given up."""

Row = dict[str, Any]


def build(folder: str, layers: Sequence[int]) -> None:
    """Writes all models, in two processes: exporting takes one core.

    Args:
        folder: Folder for the models; 21 GB with 1 and 6 layers, and 10 GB more while building.
        layers: Two numbers of layers, the smaller first.

    Raises:
        ApartError: A model could not be written.
    """
    names = ("build_dense", "build_pruned")
    for work in [
        Apart("moe_export.gpu_check.whole_models", name, folder, layers) for name in names
    ]:
        work.result()


def build_dense(folder: str, layers: Sequence[int]) -> None:
    """Writes the dense models."""
    for count in layers:
        checkpoint = Path(folder) / f"checkpoint-dense-{count}"
        make(config_of(FAMILY, SIZE, count), checkpoint)
        _export(checkpoint, place_of(folder, DENSE, count))
        shutil.rmtree(checkpoint)


def build_pruned(folder: str, layers: Sequence[int]) -> None:
    """Writes the models of half the dimensions, made as pruning leaves them."""
    for count in layers:
        checkpoint = Path(folder) / f"checkpoint-half-{count}"
        make(pruned_config(count), checkpoint)
        _export(checkpoint, place_of(folder, HALF, count))
        rounded = checkpoint.with_name(f"checkpoint-int4-{count}")
        rounded.mkdir()
        quantize.run(Job(FORMATS, checkpoint, {"prune": checkpoint}, rounded))
        shutil.rmtree(checkpoint)
        _export(rounded, place_of(folder, INT4, count))
        shutil.rmtree(rounded)


def pruned_config(layers: int) -> dict[str, Any]:
    """Config of a checkpoint as the prune stage writes it, with random widths in each layer."""
    config = config_of(FAMILY, SIZE, layers)
    widths = [skewed_widths(np.random.default_rng(layer)).tolist() for layer in range(layers)]
    return config | {"model_type": PRUNED_PREFIX + FAMILY, WIDTHS_KEY: widths}


def _export(checkpoint: Path, place: Path) -> None:
    export_model(checkpoint, place, DTYPE)


def place_of(folder: str, model: str, layers: int) -> Path:
    """Folder that a model is exported to."""
    return Path(folder) / f"{FOLDERS[model]}-{layers}"


def models(folder: str, layers: Sequence[int], provider: str = "cuda") -> list[Row]:
    """Measures tokens/s and memory by model, number of layers and batch, after `build`.

    Args:
        folder: Folder of the models.
        layers: Two numbers of layers, the smaller first.
        provider: `cuda`, or `cpu` in tests.
    """
    rows: list[Row] = []
    for count in layers:
        for model in FOLDERS:
            place = place_of(folder, model, count)
            about = {"model": model, "layers": count}
            try:
                work = Apart("moe_export.gpu_check.decode", "measure", place, provider, BATCHES)
                measured = work.result(MOST_S)
            except ApartError as error:
                rows.append(about | {"failed": str(error), "held": False})
                continue
            about["weight_bytes"] = (place / DATA_FILE).stat().st_size
            rows += [about | row for row in measured]
    return with_ratios([*rows, *of_all_layers(rows, layers, weight_bytes(ALL_LAYERS))])


def weight_bytes(layers: int) -> dict[str, int]:
    """Bytes of each model's exported weights, computed from its config."""
    dense, half = (spec_of(c) for c in (config_of(FAMILY, SIZE, layers), pruned_config(layers)))
    specs = {DENSE: dense, HALF: half, INT4: in_formats(half, FORMATS.quantization())}
    return {model: predicted_bytes(spec, DTYPE).total_bytes for model, spec in specs.items()}


def of_all_layers(
    rows: Sequence[Row], layers: Sequence[int], size_bytes: Mapping[str, int]
) -> list[Row]:
    """Rows of 24 layers, on the line through the times of the two numbers of layers."""
    times = {(row["model"], row["batch"], row["layers"]): row for row in rows if "batch" in row}
    few, many = layers
    made = []
    for model, total in size_bytes.items():
        for batch in BATCHES:
            pair = [times.get((model, batch, count)) for count in (few, many)]
            if None in pair:
                continue
            row: Row = {"model": model, "layers": ALL_LAYERS, "weight_bytes": total, "batch": batch}
            for column in ("token_us", "step_us"):
                first, last = (timed[column] for timed in pair)  # type: ignore[index]
                row[column] = last + (ALL_LAYERS - many) * (last - first) / (many - few)
            made.append(row | {"decode_tokens_per_s": batch / row["token_us"] * 1e6})
    return made


def with_ratios(rows: list[Row]) -> list[Row]:
    """Adds ratios to the dense model of as many layers to the rows of the pruned models.

    `times_as_fast_as_dense` compares tokens/s, which includes the choice of the tokens on the host;
    `step_times_as_fast` compares the step on the device alone.
    """
    dense = {(row["layers"], row["batch"]): row for row in rows if _is_timed(row, DENSE)}
    for row in rows:
        if not _is_timed(row) or (row["layers"], row["batch"]) not in dense:
            continue
        of = dense[row["layers"], row["batch"]]
        if row is not of:
            row["times_as_fast_as_dense"] = of["token_us"] / row["token_us"]
            row["step_times_as_fast"] = of["step_us"] / row["step_us"]
            row["of_dense_weight_bytes"] = row["weight_bytes"] / of["weight_bytes"]
    return rows


def _is_timed(row: Row, model: str | None = None) -> bool:
    return "batch" in row and model in (None, row["model"])
