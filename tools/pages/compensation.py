"""The effect of refitting `down` and of distilling routers, on the demo model."""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.artifacts.ledger import Ledger
from moe_export.recipe import DistillSettings, PruneSettings, QuantizeSettings
from moe_export.recipe.load import load_recipe
from moe_export.stages import quantize
from moe_export.stages.job import Job
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out, scored_tasks, scores_of
from tools.pages.page import read_data, rounded, write_page

RECIPE = Path("recipes/demo_50pct_int4.yaml")

KEEPS = (0.5, 0.25)
WAYS = {
    "fisher_margin": ((False, False), (True, False), (False, True), (True, True)),
    "activation": ((False, False), (True, False)),
}
"""Ranking to pairs: True if `down` is refitted, True if routers are distilled."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("--run", type=Path, help="run directory to keep (default: a temporary one)")
    parser.add_argument("--items", type=int, default=100, help="documents of each task")
    parser.add_argument(
        "--add", action="store_true", help="measure only what the page does not have yet"
    )


def make(arguments: argparse.Namespace) -> None:
    """Measures every way and writes the page after each, as all of them take long."""
    known: list[dict[str, Any]] = []
    if arguments.add:
        before = read_data("compensation")
        known = before["results"] if before["items"] == arguments.items else []
    with tempfile.TemporaryDirectory() as scratch:
        directory = arguments.run or Path(scratch) / "run"
        for score, keep in product(WAYS, KEEPS):
            for way in WAYS[score]:
                if any(_way(row) == (score, keep, *way) for row in known):
                    continue
                known += measure(directory, Path(scratch), arguments.items, (score, keep, *way))
                write({"items": arguments.items, "results": known})


def write(figures: dict[str, Any]) -> None:
    """Writes the page with the rows in order."""
    order = [(score, keep, *way) for score in WAYS for keep in KEEPS for way in WAYS[score]]
    figures["results"].sort(key=lambda row: order.index(_way(row)))
    settings = {"ridge": PruneSettings().ridge, "distill_router": DistillSettings().model_dump()}
    content = rounded(settings | figures)
    write_page("compensation", content, markdown(content))


def measure(
    directory: Path, scratch: Path, items: int, way: tuple[str, float, bool, bool]
) -> list[dict[str, Any]]:
    """Rows of one ranking, share kept and way, one for each format."""
    score, keep, refit, distill = way
    recipe = load_recipe(
        RECIPE,
        (
            f"plan.keep={keep}",
            f"plan.score={score}",
            f"importance.scores=[{', '.join(WAYS)}]",
            f"prune.refit_down={refit}",
            f"prune.distill_router={distill}",
        ),
    )
    model = carried_out(recipe, directory, "prune")
    pruned = directory / "prune"
    dense, tasks = load_torch_model(model, torch.float32), scored_tasks(recipe, model, items)
    ledger = Ledger.load(pruned).plain()
    point = {
        "score": score,
        "keep": keep,
        "refit": {kind: len(of) for kind, of in ledger["refit"].items()} if refit else None,
        "distill": ledger["distill"] | {"tensors": len(ledger["distill"]["tensors"])}
        if distill
        else None,
    }
    scores = scores_of(load_torch_model(pruned, torch.float32), tasks, dense)
    rows = [point | {"format": "float"} | scores]
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        folders = {"prune": pruned, "calibrate": directory / "calibrate"}
        quantize.run(Job(QuantizeSettings(method="gptq"), model, folders, Path(out)))
        scores = scores_of(load_torch_model(Path(out), torch.float32), tasks, dense)
    return [*rows, point | {"format": "int4, gptq"} | scores]


def _way(row: dict[str, Any]) -> tuple[str, float, bool, bool]:
    return row["score"], row["keep"], row["refit"] is not None, row["distill"] is not None


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    words = ", ".join(f"{key} {value:g}" for key, value in data["distill_router"].items())
    introduction = (
        "Made by `python -m tools.pages compensation`. The demo model pruned with "
        f"`prune.refit_down` off and on (ridge {data['ridge']:g}), and with "
        f"`prune.distill_router` off and on ({words}), then quantized in groups of 32; scored in "
        "torch. KL is from the unpruned model, and it and the loss are means per token of held-out "
        f"text; exact match is the mean over four tasks of {data['items']} documents. The last "
        "column is what distilling itself saw: the KL on calibration sequences that it was not "
        "trained on."
    )
    lines = ["# Compensation", "", introduction]
    head = (
        "| kept | format | refit | routers | text KL, nats | text loss, nats | facts | "
        "exact match | held-out KL, nats |"
    )
    for score in dict.fromkeys(row["score"] for row in data["results"]):
        lines += [
            "",
            f"## Ranked by {score}",
            "",
            head,
            "| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for keep, form in product(KEEPS, ("float", "int4, gptq")):
            lines += [
                _line(row)
                for row in data["results"]
                if (row["score"], row["keep"], row["format"]) == (score, keep, form)
            ]
    return "\n".join([*lines, ""])


def _line(row: dict[str, Any]) -> str:
    refit = "off"
    if row["refit"]:
        refit = f"{row['refit']['tensors']} experts"
        if row["refit"]["left"]:
            refit += f", {row['refit']['left']} left"
    routers, seen = "off", ""
    if row["distill"]:
        routers = "distilled" if row["distill"]["tensors"] else "no better, left"
        kl = row["distill"]["held_out_kl_nats"]
        seen = f"{kl['before']:.4f} → {kl['after']:.4f}"
    return (
        f"| {row['keep']:.0%} | {row['format']} | {refit} | {routers} | {row['text_kl_nats']:.4f} "
        f"| {row['text_loss_nats']:.4f} | {row['tasks']['facts']:.1%} | "
        f"{row['mean_exact_match']:.2%} | {seen} |"
    )
