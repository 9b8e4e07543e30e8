"""Decoding of the models of the page shapes, beside llama.cpp on the same weights.

llama.cpp's own converter and quantizer make its files. Models take turns, each in a process of its
own, so ratios hold on a machine with other work.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.bench.models import Model
from moe_export.bench.turns import PHASES, Settings, bench
from moe_export.checkpoint import read_config
from moe_export.families import spec_of
from moe_export.recipe import QuantizeSettings
from moe_export.reporting.tables import Table
from moe_export.reporting.units import figures, ratio
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.testing.synthetic_checkpoint import config_of, make
from moe_export.testing.tiny import pruned_checkpoint
from moe_export.variants import MODEL_FILE
from tools.gguf.converted import convert
from tools.gguf.quantize import quantize as quantize_gguf

PEER = "Q4_0"
WIDTHS = {"unpruned int4": 1, "half int4": 2}
"""Our exports, and what the width of their experts is divided by."""

CHANGES: dict[str, dict[str, Any]] = {
    "lfm2_moe": {},
    "glm4_moe_lite": {"num_hidden_layers": 2},
    "qwen3_5_moe_text": {"num_experts": 64},
}
"""Changes of the page's configs, which keep the files of a model below 5 GB. A token reads as many
experts as before."""

SETTINGS = Settings(threads=(1, 2), batches=(1,), prompt_tokens=(64,), new_tokens=32, repeats=7)


def peer_config(family: str, size: str, layers: int, vocabulary: int) -> dict[str, Any]:
    """Config of the model that both run."""
    changes = CHANGES[family]
    depth = changes.get("num_hidden_layers", layers)
    return config_of(family, size, depth, vocabulary) | changes


def prepare(config: dict[str, Any], home: Path, libraries: Path, sources: Path) -> None:
    """Writes exports and the GGUF file, unless they are there.

    Args:
        config: Content of `config.json`.
        home: Folder of the files.
        libraries: Folder of llama.cpp's libraries.
        sources: Folder of its sources, with the converter.
    """
    done = home / f"{PEER}.gguf"
    if done.exists():
        return
    shutil.rmtree(home, ignore_errors=True)
    source, floats = home / "source", home / "bfloat16.gguf"
    make(config, source)
    for name, divisor in WIDTHS.items():
        _export(source, home, name, divisor)
    convert(sources, source, floats)
    shutil.rmtree(source)
    part = home / "part.gguf"
    quantize_gguf(floats, part, PEER, libraries, threads=2)
    floats.unlink()
    part.rename(done)


def _export(source: Path, home: Path, name: str, divisor: int) -> None:
    """Exports the checkpoint with its experts cut to a part of their width."""
    pruned, quantized = home / "pruned", home / "quantized"
    widths = [
        [width // divisor for width in layer] for layer in spec_of(read_config(source)).widths
    ]
    pruned_checkpoint(source, pruned, widths)
    quantized.mkdir()
    settings = QuantizeSettings(experts="int4", dense="int4", method="rtn")
    quantize(Job(settings=settings, model=source, folders={"prune": pruned}, out=quantized))
    shutil.rmtree(pruned)
    export_model(quantized, home / name, "float16", layout="packed")
    shutil.rmtree(quantized)
    assert (home / name / MODEL_FILE).exists()


def timed(home: Path, libraries: Path) -> dict[str, Any]:
    """Times what `prepare` wrote."""
    models = [Model(PEER, home / f"{PEER}.gguf", llama_cpp=libraries)]
    models += [Model(name, home / name) for name in WIDTHS]
    found = bench(models, SETTINGS)
    return {key: found[key] for key in ("machine", "versions", "kernel", "settings", "results")}


def peer_table(peer: Mapping[str, Any]) -> Table:
    """Speeds and their ratios to llama.cpp, with the least and the greatest of all turns."""
    rows = []
    for row in peer["results"]:
        cells = [row["variant"], str(row["threads"])]
        for phase in PHASES:
            held = row[f"{phase}_of_first"]
            least, greatest = (ratio(held[key]) for key in ("min", "max"))
            speed = figures(row[f"{phase}_tokens_per_s"]["median"])
            cells += [speed, f"{ratio(held['median'])} ({least} to {greatest})"]
        rows.append(cells)
    head = ["model", "threads"]
    for phase in PHASES:
        head += [f"{phase}, tokens/s", "of llama.cpp"]
    return Table(head, rows)
