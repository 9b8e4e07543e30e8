"""Decoding speed at the shapes of released models, with fewer experts per token.

Weights are random and stored in few bits. Exports of two depths take turns, and a line through
both gives the time of a step at the real number of layers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe_export.artifacts.base import save_tensors
from moe_export.bench.models import Model
from moe_export.bench.process import ModelProcess
from moe_export.bench.requests import Sizes
from moe_export.checkpoint import INDEX_FILE, read_config, write_json
from moe_export.families import spec_of
from moe_export.families.quantized import in_formats
from moe_export.graph.predict import predicted_bytes
from moe_export.op.library import describe
from moe_export.planning.shares import uniform_shares
from moe_export.quantization import Quantization
from moe_export.recipe import QuantizeSettings
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.stages.export import export_model
from moe_export.stages.job import Job
from moe_export.stages.quantize import run as quantize
from moe_export.system.machine import machine, versions
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.synthetic_checkpoint import make as make_checkpoint
from moe_export.variants import MODEL_FILE
from tools.pages.tuning_arms import CONDENSERS
from tools.speed.pieces import seconds_in_turns

FLAT, DEEP = 2, 4
"""Numbers of layers of the exports."""

DTYPE = "float16"
SIZES = Sizes(1, 32, 48)
REPEATS = 21

FULL, HALF, VECTORS, MORE = "K", "K/2", "K/2, tied vectors", "K + r, condensers"
WAYS = (FULL, HALF, VECTORS, MORE)

Config = dict[str, Any]


@dataclass(frozen=True)
class Large:
    """A released model's shape in some formats.

    Attributes:
        name: Name in the command line.
        title: Name in the table.
        family: Family of the synthetic checkpoint.
        size: Its size.
        dense: Format of attention and lm_head; experts are in int4.
    """

    name: str
    title: str
    family: str
    size: str
    dense: str

    def config(self, way: str, layers: int | None = None) -> Config:
        """Config of one way, with the real number of layers unless another is given."""
        config = config_of(self.family, self.size, layers)
        top_k, layers = config["num_experts_per_tok"], config["num_hidden_layers"]
        ours = {"model_type": f"moe_export_{config['model_type']}"}
        added: dict[str, Config] = {
            FULL: {},
            HALF: {"num_experts_per_tok": top_k // 2},
            VECTORS: ours | {"compressed_experts": top_k // 2, "compressed_form": "tied"},
            MORE: ours
            | {"router_bias": True, "condenser_experts": [list(range(CONDENSERS))] * layers},
        }
        return config | added[way]

    def active_bytes(self, way: str) -> int:
        """Bytes of weights that a token reads at the real number of layers."""
        spec = in_formats(spec_of(self.config(way)), Quantization("int4", self.dense))
        return predicted_bytes(spec, DTYPE, "packed").active_bytes(spec, uniform_shares(spec))


LARGE = (
    Large("olmoe-int4", "OLMoE-1B-7B, all in int4", "olmoe", "olmoe-1b-7b", "int4"),
    Large("olmoe-int4-int8", "OLMoE-1B-7B, the rest in int8", "olmoe", "olmoe-1b-7b", "int8"),
    Large("qwen1.5-int4", "Qwen1.5-MoE, all in int4", "qwen2_moe", "qwen1.5-moe-a2.7b", "int4"),
)
LARGE_BY_NAME = {large.name: large for large in LARGE}


def prepare(large: Large, home: Path) -> None:
    """Writes the exports that are not there yet.

    Args:
        large: Shape and formats.
        home: Folder of the exports.
    """
    for layers in (FLAT, DEEP):
        wanted = [
            way for way in WAYS if not (_folder(large, home, way, layers) / MODEL_FILE).exists()
        ]
        if not wanted:
            continue
        base = _quantized(large, home, layers)
        for way in wanted:
            variant, part = home / "variant", home / "part"
            shutil.rmtree(part, ignore_errors=True)
            _write_variant(base, variant, large.config(way, layers))
            export_model(variant, part, DTYPE, layout="packed")
            part.rename(_folder(large, home, way, layers))
        for path in (base, variant):
            shutil.rmtree(path)


def _folder(large: Large, home: Path, way: str, layers: int) -> Path:
    return home / f"{LARGE.index(large)}-{layers}-{WAYS.index(way)}"


def _quantized(large: Large, home: Path, layers: int) -> Path:
    """Quantized checkpoint without vectors and biases."""
    source, quantized = home / "source", home / "quantized"
    for path in (source, quantized):
        shutil.rmtree(path, ignore_errors=True)
    make_checkpoint(large.config(FULL, layers), source)
    quantized.mkdir()
    settings = QuantizeSettings(experts="int4", dense=large.dense, method="rtn")
    quantize(Job(settings=settings, model=source, folders={"prune": source}, out=quantized))
    shutil.rmtree(source)
    return quantized


def _write_variant(base: Path, out: Path, config: Config) -> None:
    """Writes a checkpoint with the shards of another one, and random vectors or zero biases."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for path in base.iterdir():
        os.link(path, out / path.name)
    stored = read_config(base)
    spec = spec_of(stored | config)
    index = json.loads((base / INDEX_FILE).read_text())
    random = np.random.default_rng(0)
    added = {
        name: random.normal("compressed" in name, 0.1 * ("compressed" in name), tensor.shape)
        for name, tensor in spec.tensors.items()
        if tensor.stored is not None
    }
    if added:
        save_tensors(
            out / "added.safetensors", {name: v.astype(np.float32) for name, v in added.items()}
        )
    index["weight_map"] |= dict.fromkeys(added, "added.safetensors")
    for name, content in ((INDEX_FILE, index), ("config.json", stored | config)):
        (out / name).unlink()
        write_json(out / name, content)


def measure_large(large: Large, home: Path) -> dict[str, Any]:
    """Seconds of a decoding step of each way and depth, a list over turns.

    Args:
        large: Shape and formats.
        home: Folder of the exports.
    """
    home.mkdir(parents=True, exist_ok=True)
    prepare(large, home)
    models = [
        Model(_place(way, layers), _folder(large, home, way, layers))
        for layers in (FLAT, DEEP)
        for way in WAYS
    ]
    with ExitStack() as stack:
        processes = {
            model.name: stack.enter_context(closing(ModelProcess(model, 1))) for model in models
        }
        seconds = seconds_in_turns(processes, SIZES, False, REPEATS)
    return {
        "name": large.name,
        "title": large.title,
        "seconds": seconds,
        "active_bytes": {way: large.active_bytes(way) for way in WAYS},
        "layers": large.config(FULL)["num_hidden_layers"],
        "prompt_tokens": SIZES.prompt_tokens,
        "new_tokens": SIZES.new_tokens,
        "machine": machine()["cpu"],
        "load": os.getloadavg()[0],
        "kernel": describe().kernel,
        "onnxruntime": versions()["onnxruntime"],
    }


def _place(way: str, layers: int) -> str:
    return f"{way}, {layers} layers"


def large_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Part of the page with a table of all results."""
    if not results:
        return []
    about = results[0]
    turns = len(about["seconds"][_place(FULL, FLAT)])
    words = (
        "`python -m tools.pages tuning RUN --large NAME` times models of the shapes of released "
        "ones, random weights, experts in int4, packed float16 exports, on one thread "
        f"({about['kernel']} kernels, ONNX Runtime {about['onnxruntime']}), batch 1, "
        f"{about['new_tokens']} tokens after a prompt of {about['prompt_tokens']}. All ways and "
        "both depths take turns; shares are of the time with all K experts in the same turn, the "
        f"median over {turns} turns with the least and the greatest. The last column is at the "
        f"real number of layers, by the lines through the medians at {FLAT} and {DEEP}. Bytes are "
        "those of weights that a token reads at that number. Others used the machine too (load "
        f"average {about['load']:.1f} at the end), so that the lines are uncertain."
    )
    head = ["model", "way", "bytes", *(f"{n} layers" for n in (FLAT, DEEP)), "all layers"]
    cells = [row for result in results for row in _rows(result)]
    verdicts = [_verdict(result) for result in results]
    return ["## Speed at large shapes", "", *verdicts, "", words, "", *_lines(head, cells), ""]


def _rows(result: Mapping[str, Any]) -> Iterator[list[str]]:
    full = result["active_bytes"][FULL]
    for way in WAYS:
        of_full = f"{result['active_bytes'][way] / full:.2f}"
        shares = [_spread(result, way, layers) for layers in (FLAT, DEEP)]
        name = f"{result['title']} ({result['layers']} layers)"
        yield [name, way, of_full, *shares, f"{_share(result, way):.2f}"]


def _spread(result: Mapping[str, Any], way: str, layers: int) -> str:
    own, full = (np.array(result["seconds"][_place(each, layers)]) for each in (way, FULL))
    shares = own / full
    return f"{np.median(shares):.2f} [{shares.min():.2f}, {shares.max():.2f}]"


def _share(result: Mapping[str, Any], way: str) -> float:
    """Share of the time with all experts, at the real number of layers."""
    return _step_s(result, way) / _step_s(result, FULL)


def _step_s(result: Mapping[str, Any], way: str) -> float:
    flat, deep = (float(np.median(result["seconds"][_place(way, n)])) for n in (FLAT, DEEP))
    return flat + (deep - flat) * (result["layers"] - FLAT) / (DEEP - FLAT)


def _verdict(result: Mapping[str, Any]) -> str:
    bound = 1 - result["active_bytes"][VECTORS] / result["active_bytes"][FULL]
    return (
        f"{result['title']}: compressed experts at K/2 take {1 - _share(result, VECTORS):.0%} less "
        f"time per decoded token than K experts (bytes: {bound:.0%} less)."
    )


def _lines(head: list[str], cells: list[list[str]]) -> list[str]:
    return table(Table(tuple(head), tuple(map(tuple, cells)))).splitlines()
