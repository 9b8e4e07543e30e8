"""What the methods of quantization are worth on the demo model: docs/quantization.{json,md}.

python -m tools.quantize_table [--run DIR] [--items N]

The demo model is pruned once per share kept; each copy is quantized by every method, and scored in
torch with its weights dequantized, so that nothing but the weights differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.evaluation import mean_exact_match
from moe_export.jobs import Job, silent
from moe_export.outside import fingerprints
from moe_export.pipeline import between, steps_of
from moe_export.recipe import QuantizeSettings, Recipe
from moe_export.recipe_file import load_recipe
from moe_export.run import Run
from moe_export.source_model import locate
from moe_export.sources import draw, has_answers, task_names
from moe_export.stages import quantize
from moe_export.torch_model import load_torch_model
from moe_export.torch_model.masking import ScoredTask, score_tasks
from tools.update_docs import rounded

RECIPE = Path("recipes/demo_50pct_int4.yaml")
KEEPS = (1.0, 0.5, 0.25)
FORMATS = (("int8", 128), ("int4", 32), ("int4", 128))
METHODS = ("rtn", "mse", "gptq")
TEST_SEED = 1234


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="where to calibrate and prune (default: nowhere)")
    parser.add_argument("--items", type=int, default=200, help="documents of each task")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments.run or Path(scratch) / "run", Path(scratch), arguments.items)
    content = rounded(found)
    text = json.dumps(content, indent=1) + "\n"
    Path("docs/quantization.json").write_text(text, encoding="utf-8")
    page = Path("docs/quantization.md")
    page.write_text(markdown(content), encoding="utf-8")


def measure(directory: Path, scratch: Path, items: int) -> dict[str, Any]:
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
        baseline = baseline or {"keep": 1.0, "format": "float", **scores_of(dense, tasks, None)}
        pruned = directory / "prune"
        kept = load_torch_model(pruned, torch.float32)
        results.append({"keep": keep, "format": "float", **scores_of(kept, tasks, dense)})
        for (name, group_size), method in product(FORMATS, METHODS):
            out = scratch / f"{keep}-{name}-{group_size}-{method}"
            out.mkdir()
            settings = QuantizeSettings(experts=name, group_size=group_size, method=method)
            folders = {"prune": pruned, "calibrate": directory / "calibrate"}
            quantize.run(Job(settings, model, folders, out))
            ledger = json.loads((out / quantize.QUANTIZATION_FILE).read_text(encoding="utf-8"))
            results.append(
                {
                    "keep": keep,
                    "format": name,
                    "group_size": group_size,
                    "method": method,
                    "relative_error": ledger["classes"]["experts"]["relative_error"],
                    "fallbacks": len(ledger["fallbacks"]),
                    **scores_of(load_torch_model(out, torch.float32), tasks, kept),
                }
            )
    return {"items": items, "baseline": baseline, "results": results}


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
    lines = [
        "# Methods of quantization",
        "",
        (
            "Made by `python -m tools.quantize_table`. The demo model, its experts pruned by "
            "`fisher_margin` and then quantized; scored in torch with the dequantized weights. KL "
            "is from the same model unquantized, and it and the loss are means per token of "
            "held-out text; "
            f"exact match is the mean over four tasks of {found['items']} documents."
        ),
        "",
        (
            f"Unpruned and unquantized: {found['baseline']['mean_exact_match']:.2%} exact match, "
            f"{found['baseline']['text_loss_nats']:.4f} nats."
        ),
    ]
    for keep in KEEPS:
        rows = [r for r in found["results"] if r["keep"] == keep]
        lines += [
            "",
            f"## {keep:.0%} kept",
            "",
            "| format | method | weights' error | text KL, nats | text loss, nats | exact match |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for row in rows:
            if row["format"] == "float":
                lines.append(
                    f"| float | | | | {row['text_loss_nats']:.4f} | {row['mean_exact_match']:.2%} |"
                )
                continue
            lines.append(
                f"| {row['format']}, groups of {row['group_size']} | {row['method']} | "
                f"{row['relative_error']:.2%} | {row['text_kl_nats']:.5f} | "
                f"{row['text_loss_nats']:.4f} | {row['mean_exact_match']:.2%} |"
            )
    short = sum(row.get("fallbacks", 0) for row in found["results"])
    lines += ["", f"Matrices that too few tokens reached, over all rows: {short}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
