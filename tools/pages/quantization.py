"""What the methods of quantization are worth on the demo model: docs/results/quantization.md and its data.

python -m tools.pages.quantization [--run DIR] [--items N]

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

from moe_export.artifacts.base import load_json
from moe_export.documents.sources import TEST_SEED, draw, has_answers, task_names
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.evaluation.tally import mean_exact_match
from moe_export.formats import GROUP_SIZES
from moe_export.recipe import QuantizeSettings, Recipe
from moe_export.recipe.load import load_recipe
from moe_export.runner.fingerprints import fingerprints
from moe_export.runner.run import Run
from moe_export.runner.source_model import locate
from moe_export.runner.steps import between, steps_of
from moe_export.stages import quantize
from moe_export.stages.job import Job
from moe_export.system.progress import silent
from moe_export.torch_model import load_torch_model
from tools.pages import bitsandbytes_peer
from tools.pages.demo_compare import rounded

RECIPE = Path("recipes/demo_50pct_int4.yaml")
KEEPS = (1.0, 0.5, 0.25)
FORMATS = {
    "int8": (128,),
    "uint8": (128,),
    "int4": GROUP_SIZES,
    "uint4": GROUP_SIZES,
    "nf4": GROUP_SIZES,
}
"""To the sizes of groups that are compared; of 8 bits all lose next to nothing."""

METHODS = ("rtn", "mse", "gptq")
PEER = "bitsandbytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run",
        type=Path,
        help="where to calibrate, prune and keep finished rows, so that it can be gone on from",
    )
    parser.add_argument("--items", type=int, default=100, help="documents of each task")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments.run or Path(scratch) / "run", Path(scratch), arguments.items)
    content = rounded(found)
    text = json.dumps(content, indent=1) + "\n"
    Path("docs/results/data/quantization.json").write_text(text, encoding="utf-8")
    page = Path("docs/results/quantization.md")
    page.write_text(markdown(content), encoding="utf-8")


def measure(directory: Path, scratch: Path, items: int) -> dict[str, Any]:
    """All rows. Those that `directory` holds already are not made again."""
    results: list[dict[str, Any]] = []
    baseline: dict[str, Any] = {}
    for keep in KEEPS:
        recipe = load_recipe(RECIPE, (f"plan.keep={keep}",))
        model = locate(recipe.model)
        steps, _ = between(steps_of(recipe), None, "prune")
        run = Run(directory, steps, model, fingerprints(steps, model))
        run.execute(recipe.plain(), set(), lambda _step: silent, lambda _state, _seconds: None)
        tasks = scored_tasks(recipe, model, items)
        dense = load_torch_model(model, torch.float32)
        if not baseline:
            baseline = {"keep": 1.0, "format": "float", **scores_of(dense, tasks, None)}
        kept = load_torch_model(directory / "prune", torch.float32)
        found = [{"format": "float", "method": None, **scores_of(kept, tasks, dense)}]
        for number, make in enumerate(points(directory, scratch, kept, tasks)):
            file = directory / f"row-{keep}-{number}.json"
            if not file.exists():
                file.write_text(json.dumps({"items": items} | make()), encoding="utf-8")
            found.append(json.loads(file.read_text(encoding="utf-8")))
            assert found[-1].pop("items") == items, f"{file} is of another number of items"
        results += [{"keep": keep} | row for row in found]
    peer_version = version(PEER) if bitsandbytes_peer.is_installed() else None
    return {"items": items, PEER: peer_version, "baseline": baseline, "results": results}


def points(
    directory: Path, scratch: Path, kept: Any, tasks: dict[str, ScoredTask]
) -> list[Callable[[], dict[str, Any]]]:
    """What makes each row of one share kept.

    Args:
        directory: of the run.
        scratch: for quantized checkpoints.
        kept: the pruned model.
        tasks: that are scored.
    """

    def ours(name: str, group_size: int, method: str) -> dict[str, Any]:
        out = scratch / "quantized"
        out.mkdir()
        words = {"experts": name, "group_size": group_size, "method": method}
        folders = {stage: directory / stage for stage in ("calibrate", "prune")}
        quantize.run(Job(QuantizeSettings.model_validate(words), out, folders, out))
        ledger = load_json(out / quantize.QUANTIZATION_FILE)
        scores = scores_of(load_torch_model(out, torch.float32), tasks, kept)
        shutil.rmtree(out)
        experts = ledger["classes"]["experts"]
        stored_bytes = experts["code_bytes"] + experts["scale_bytes"]
        return {
            "format": name,
            "group_size": group_size,
            "method": method,
            "bits": 8 * stored_bytes / experts["elements"],
            "relative_error": experts["relative_error"],
            "fallbacks": len(ledger["fallbacks"]),
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


def scored_tasks(recipe: Recipe, model: Path, items: int) -> dict[str, ScoredTask]:
    """Held-out documents of each of a recipe's tasks."""
    return {
        name: ScoredTask(
            has_answers(task), draw(task, model, items, 512, TEST_SEED, "test").sequences
        )
        for name, task in task_names(recipe.validate_.tasks).items()
    }


def scores_of(model: Any, tasks: dict[str, ScoredTask], reference: Any) -> dict[str, Any]:
    """Exact match, and loss and divergence on text."""
    scores = score_tasks(model, tasks, reference)
    return {
        "mean_exact_match": mean_exact_match(scores),
        "text_loss_nats": scores["text"]["loss_nats"],
        "text_kl_nats": scores["text"].get("kl_nats"),
        "tasks": {name: score["exact_match"] for name, score in scores.items()},
    }


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    results, peer = found["results"], found[PEER]
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
            "Made by `python -m tools.pages.quantization`. The demo model, its experts pruned by "
            "`fisher_margin` and then quantized; scored in torch with the dequantized weights. KL "
            "is from the same model unquantized, per token of held-out text, in thousandths of a "
            f"nat; exact match is the mean over four tasks of {found['items']} documents. Bits are "
            "those of a weight of a routed expert with its share of scales and zero points. "
            + peer_words
        ),
        "",
        (
            f"Unpruned and unquantized: {found['baseline']['mean_exact_match']:.2%} exact match, "
            f"{found['baseline']['text_loss_nats']:.4f} nats of text loss."
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
        found = [r for r in rows if (r["format"], r.get("group_size")) == (name, group_size)]
        yield f"| {name} | {group_size} | {found[0]['bits']:.2f} | {_cells(found)} |"
    for row in rows:
        if row["method"] == PEER:
            cells = _cells([row]).replace(" | ", " | | | ")
            yield f"| {row['format']} | | {row['bits']:.2f} | {cells} | | |"


def _cells(rows: list[dict[str, Any]]) -> str:
    kl = [f"{1000 * row['text_kl_nats']:.2f}" for row in rows]
    return " | ".join([*kl, *(f"{row['mean_exact_match']:.2%}" for row in rows)])


if __name__ == "__main__":
    main()
