"""What refitting `down` is worth on the demo model: docs/refit.{json,md}.

python -m tools.refit_table [--run DIR] [--items N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.jobs import Job, silent
from moe_export.outside import fingerprints
from moe_export.pipeline import between, steps_of
from moe_export.recipe import QuantizeSettings
from moe_export.recipe_file import load_recipe
from moe_export.run import Run
from moe_export.source_model import locate
from moe_export.stages import quantize
from moe_export.torch_model import load_torch_model
from tools.quantize_table import RECIPE, scored_tasks, scores_of
from tools.update_docs import rounded

KEEPS = (0.5, 0.25)
SCORES = ("fisher_margin", "activation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="where to calibrate and prune (default: nowhere)")
    parser.add_argument("--items", type=int, default=200, help="documents of each task")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments.run or Path(scratch) / "run", Path(scratch), arguments.items)
    content = rounded(found)
    Path("docs/refit.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    Path("docs/refit.md").write_text(markdown(content), encoding="utf-8")


def measure(directory: Path, scratch: Path, items: int) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for score, keep, refit in product(SCORES, KEEPS, (False, True)):
        recipe = load_recipe(
            RECIPE,
            (
                f"plan.keep={keep}",
                f"plan.score={score}",
                f"importance.scores=[{', '.join(SCORES)}]",
                f"prune.refit_down={refit}",
            ),
        )
        model = locate(recipe.model)
        steps, _ = between(steps_of(recipe), None, "prune")
        run = Run(directory, steps, model, fingerprints(steps, model))
        run.execute(recipe.plain(), set(), lambda _step: silent, lambda _state, _seconds: None)
        dense, tasks = load_torch_model(model, torch.float32), scored_tasks(recipe, model, items)
        pruned = directory / "prune"
        ledger = json.loads((pruned / "ledger.json").read_text(encoding="utf-8"))
        point = {"score": score, "keep": keep, "refit": refit}
        point |= {"refitted": len(ledger["refit"]["tensors"]), "left": len(ledger["refit"]["left"])}
        scores = scores_of(load_torch_model(pruned, torch.float32), tasks, dense)
        results.append(point | {"format": "float"} | scores)
        out = scratch / f"{score}-{keep}-{refit}"
        out.mkdir()
        folders = {"prune": pruned, "calibrate": directory / "calibrate"}
        quantize.run(Job(QuantizeSettings(method="gptq"), model, folders, out))
        scores = scores_of(load_torch_model(out, torch.float32), tasks, dense)
        results.append(point | {"format": "int4, gptq"} | scores)
    return {"items": items, "results": results}


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    introduction = (
        "Made by `python -m tools.refit_table`. The demo model pruned with `prune.refit_down` off "
        "and on (ridge 0.01), then quantized in groups of 32; scored in torch. KL is from the "
        "unpruned model, and it and the loss are means per token of held-out text; exact match is "
        f"the mean over four tasks of {found['items']} documents."
    )
    lines = ["# Refitting down", "", introduction]
    for score in SCORES:
        lines += [
            "",
            f"## Ranked by {score}",
            "",
            "| kept | format | refit | text KL, nats | text loss, nats | facts | exact match |",
            "| ---: | --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for keep, form in product(KEEPS, ("float", "int4, gptq")):
            for row in found["results"]:
                if (row["score"], row["keep"], row["format"]) == (score, keep, form):
                    refit = f"{row['refitted']} experts" if row["refit"] else "off"
                    if row["left"]:
                        refit += f", {row['left']} left"
                    lines.append(
                        f"| {keep:.0%} | {form} | {refit} | {row['text_kl_nats']:.4f} | "
                        f"{row['text_loss_nats']:.4f} | {row['tasks']['facts']:.1%} | "
                        f"{row['mean_exact_match']:.2%} |"
                    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
