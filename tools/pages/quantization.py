"""The formats and methods of quantization, compared on the demo model.

The demo model is pruned once per share kept; each copy is quantized by every method, and scored in
torch with its weights dequantized, so that nothing but the weights differs. Where bitsandbytes is
installed (the extra `bnb`), its layers are scored too; the page says so where it is not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.artifacts.quantization import QuantizationRecord
from moe_export.evaluation.masking import ScoredTask
from moe_export.formats import GROUP_SIZES
from moe_export.recipe import QuantizeSettings
from moe_export.recipe.load import load_recipe
from moe_export.stages import quantize
from moe_export.stages.job import Job
from moe_export.torch_model import load_torch_model
from tools.pages import bitsandbytes_peer
from tools.pages.demo_runs import carried_out, scored_tasks, scores_of
from tools.pages.page import rounded, write_page

RECIPE = Path("recipes/demo_50pct_int4.yaml")
KEEPS = (1.0, 0.5, 0.25)
FORMATS = {
    "int8": (128,),
    "uint8": (128,),
    "int4": GROUP_SIZES,
    "uint4": GROUP_SIZES,
    "nf4": GROUP_SIZES,
}
"""Format to the group sizes compared; formats of 8 bits lose next to nothing at any size."""

METHODS = ("rtn", "mse", "gptq")
PEER = "bitsandbytes"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument(
        "--run",
        type=Path,
        help="run directory to keep; finished rows in it are not measured again",
    )
    parser.add_argument("--items", type=int, default=100, help="documents of each task")


def make(arguments: argparse.Namespace) -> None:
    """Measures all rows and writes the page."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.run or Path(scratch) / "run"
        content = rounded(measure(directory, Path(scratch), arguments.items))
    write_page("quantization", content, markdown(content))


def measure(directory: Path, scratch: Path, items: int) -> dict[str, Any]:
    """All rows; those that `directory` already holds are read from there."""
    results: list[dict[str, Any]] = []
    baseline: dict[str, Any] = {}
    for keep in KEEPS:
        recipe = load_recipe(RECIPE, (f"plan.keep={keep}", "prune.refit=false"))
        model = carried_out(recipe, directory, "prune")
        tasks = scored_tasks(recipe, model, items)
        dense = load_torch_model(model, torch.float32)
        if not baseline:
            baseline = {"keep": 1.0, "format": "float", **scores_of(dense, tasks, None)}
        kept = load_torch_model(directory / "prune", torch.float32)
        of_keep = [{"format": "float", "method": None, **scores_of(kept, tasks, dense)}]
        for number, make in enumerate(points(directory, scratch, kept, tasks)):
            file = directory / f"row-{keep}-{number}.json"
            if not file.exists():
                file.write_text(json.dumps({"items": items} | make()), encoding="utf-8")
            of_keep.append(json.loads(file.read_text(encoding="utf-8")))
            assert of_keep[-1].pop("items") == items, f"{file} is of another number of items"
        results += [{"keep": keep} | row for row in of_keep]
    peer_version = version(PEER) if bitsandbytes_peer.is_installed() else None
    return {"items": items, PEER: peer_version, "baseline": baseline, "results": results}


def points(
    directory: Path, scratch: Path, kept: Any, tasks: dict[str, ScoredTask]
) -> list[Callable[[], dict[str, Any]]]:
    """Functions that measure the rows of one share kept.

    Args:
        directory: Run directory.
        scratch: Folder for quantized checkpoints.
        kept: Pruned model in torch.
        tasks: Documents to score.
    """

    def ours(name: str, group_size: int, method: str) -> dict[str, Any]:
        out = scratch / "quantized"
        out.mkdir()
        words = {"experts": name, "group_size": group_size, "method": method}
        folders = {stage: directory / stage for stage in ("calibrate", "prune")}
        quantize.run(Job(QuantizeSettings.model_validate(words), out, folders, out))
        record = QuantizationRecord.load(out)
        scores = scores_of(load_torch_model(out, torch.float32), tasks, kept)
        shutil.rmtree(out)
        experts = record.classes["experts"]
        stored_bytes = experts.code_bytes + experts.scale_bytes
        return {
            "format": name,
            "group_size": group_size,
            "method": method,
            "bits": 8 * stored_bytes / experts.elements,
            "relative_error": experts.relative_error,
            "fallbacks": len(record.fallbacks),
            **scores,
        }

    def peer(layer: str) -> dict[str, Any]:
        model = load_torch_model(directory / "prune", torch.float32)
        # It compiles itself anew for every width otherwise.
        with torch.compiler.set_stance("force_eager"):
            replaced = bitsandbytes_peer.replace_experts(model, layer)
            scores = scores_of(model, tasks, kept)
        bits = 8 * replaced.size_bytes / replaced.elements
        return {"format": layer, "method": PEER, "bits": bits, **scores}

    layers = bitsandbytes_peer.LAYERS if bitsandbytes_peer.is_installed() else ()
    return [
        *(
            partial(ours, name, group_size, method)
            for name, group_sizes in FORMATS.items()
            for group_size, method in product(group_sizes, METHODS)
        ),
        *(partial(peer, layer) for layer in layers),
    ]


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    results, peer = data["results"], data[PEER]
    peer_words = (
        f"Below our formats stand the layers of {PEER} {peer} for the same experts, as they are by "
        "default: Linear4bit quantizes its scales too, Linear8bitLt rounds activations to int8, "
        "which none of the other rows does."
        if peer
        else f"{PEER} was not installed, so that its layers are not compared."
    )
    lines = [
        "# Formats and methods of quantization",
        "",
        (
            "Made by `python -m tools.pages quantization`. The demo model, its experts pruned by "
            "`fisher_margin` and then quantized; scored in torch with the dequantized weights. KL "
            "is from the same model unquantized, per token of held-out text, in thousandths of a "
            f"nat; exact match is the mean over four tasks of {data['items']} documents. Bits are "
            "those of a weight of a routed expert with its share of scales and zero points. "
            + peer_words
        ),
        "",
        (
            f"Unpruned and unquantized: {data['baseline']['mean_exact_match']:.2%} exact match, "
            f"{data['baseline']['text_loss_nats']:.4f} nats of text loss."
        ),
    ]
    for keep in KEEPS:
        rows = [row for row in results if row["keep"] == keep]
        lines += ["", f"## {keep:.0%} kept", "", *_table(rows)]
    short = sum(row.get("fallbacks", 0) for row in results)
    lines += ["", f"Matrices that too few tokens reached, over all rows: {short}.", ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> Iterable[str]:
    kept = next(row for row in rows if row["format"] == "float")
    yield (
        f"Unquantized: {kept['mean_exact_match']:.2%} exact match, {kept['text_loss_nats']:.4f} "
        "nats of text loss."
    )
    yield ""
    heads = [*(f"KL, {m}" for m in METHODS), *(f"match, {m}" for m in METHODS)]
    yield f"| experts | groups | bits | {' | '.join(heads)} |"
    yield f"| --- | {' | '.join(['---:'] * (2 + len(heads)))} |"
    for name, group_size in ((name, size) for name, sizes in FORMATS.items() for size in sizes):
        of_name = [r for r in rows if (r["format"], r.get("group_size")) == (name, group_size)]
        yield f"| {name} | {group_size} | {of_name[0]['bits']:.2f} | {_cells(of_name)} |"
    for row in rows:
        if row["method"] == PEER:
            cells = _cells([row]).replace(" | ", " | | | ")
            yield f"| {row['format']} | | {row['bits']:.2f} | {cells} | | |"


def _cells(rows: list[dict[str, Any]]) -> str:
    kl = [f"{1000 * row['text_kl_nats']:.2f}" for row in rows]
    return " | ".join([*kl, *(f"{row['mean_exact_match']:.2%}" for row in rows)])
