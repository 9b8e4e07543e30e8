"""The effect of fitting blocks and of distilling routers, on the demo model."""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.artifacts.calibration import CalibrationSummary
from moe_export.artifacts.ledger import Ledger
from moe_export.recipe import BlockSettings, DistillSettings, RefitSettings
from moe_export.recipe.load import load_recipe
from moe_export.reporting.build_compensation import compensation_facts
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out, scored_tasks, scores_of
from tools.pages.page import read_data, rounded, write_page

RECIPE = Path("recipes/demo_50pct_int4.yaml")

SCORE = "fisher_margin"
KEEPS = (0.5, 0.25)

FEW_TOKENS = 18_000
"""Most tokens of the scores, and of all ways to fit but the last: every third sequence."""

COMMON = (
    f"plan.score={SCORE}",
    "calibrate.sequences=1440",
    f"importance.calibration_tokens={FEW_TOKENS}",
)
_FEW = f"prune.calibration_tokens={FEW_TOKENS}"
WAYS = {
    "pruned": ("prune.refit=false",),
    "refit": ("prune.distill_blocks=false", _FEW),
    "refit, blocks": ("prune.distill_blocks=true", _FEW),
    "refit, routers": ("prune.distill_blocks=false", "prune.distill_router=true", _FEW),
    "refit, blocks, all tokens": ("prune.distill_blocks=true",),
}
"""Name of a way to fit weights, and the keys of the recipe that ask for it."""


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
        for way, keep in product(WAYS, KEEPS):
            if (keep, way) in map(_place, known):
                continue
            known.append(measure(directory, arguments.items, keep, way))
            write({"items": arguments.items, "results": known})


def write(figures: dict[str, Any]) -> None:
    """Writes the page with the rows in order."""
    figures["results"].sort(key=lambda row: list(product(KEEPS, WAYS)).index(_place(row)))
    settings = {
        "refit": RefitSettings().model_dump(),
        "distill_blocks": BlockSettings().model_dump(),
        "distill_router": DistillSettings().model_dump(),
    }
    content = rounded(settings | figures)
    write_page("compensation", content, markdown(content))


def measure(directory: Path, items: int, keep: float, way: str) -> dict[str, Any]:
    """Row of one share kept and way."""
    recipe = load_recipe(RECIPE, (f"plan.keep={keep}", *COMMON, *WAYS[way]))
    model = carried_out(recipe, directory, "prune")
    facts = compensation_facts(Ledger.load(directory / "prune"), recipe.prune)
    scores = scores_of(
        load_torch_model(directory / "prune", torch.float32),
        scored_tasks(recipe, model, items),
        load_torch_model(model, torch.float32),
    )
    tokens = CalibrationSummary.load(directory / "calibrate").tokens
    point = {"keep": keep, "way": way, "tokens": tokens}
    return point | {"fitted": facts and facts.plain()} | scores


def _place(row: dict[str, Any]) -> tuple[float, str]:
    return row["keep"], row.get("way", "")


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    tokens = data["results"][0]["tokens"]
    introduction = (
        f"Made by `python -m tools.pages compensation --items {data['items']}`. The demo model "
        "pruned without "
        f"`prune.refit`, with it ({_words(data['refit'])}), with `prune.distill_blocks` too "
        f"({_words(data['distill_blocks'])}), or with `prune.distill_router` "
        f"({_words(data['distill_router'])}), ranked by `{SCORE}`; scored in torch. "
        f"The calibration set has {tokens:,} tokens; scores use a third of it, and fitting too "
        "unless the table says all. KL is from the unpruned model, and it and the loss are means "
        "per token of held-out text; exact match is the mean over four tasks of "
        f"{data['items']} documents. The last column is what fitting itself saw on held-out "
        "calibration sequences: the squared error of a block's output over the output's square, "
        "mean over the blocks."
    )
    lines = [
        "# Compensation",
        "",
        introduction,
        "",
        "| kept | fitted | text KL, nats | loss, nats | facts | exact match | held-out error |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *map(_line, data["results"]),
    ]
    return "\n".join([*lines, ""])


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in settings.items())


def _line(row: dict[str, Any]) -> str:
    way, seen = row["way"], ""
    fitted = row["fitted"] or {}
    if refit := fitted.get("refit"):
        seen = f"{refit['error_pruned']:.4f} → {refit['error_fitted']:.4f}"
        way += f" ({refit['experts']} experts"
        way += f", {refit['distilled_blocks']} blocks)" if "distilled_blocks" in refit else ")"
    if (distill := fitted.get("distill")) and not distill["routers"]:
        way += ", no better and left"
    return (
        f"| {row['keep']:.0%} | {way} | {row['text_kl_nats']:.4f} "
        f"| {row['text_loss_nats']:.4f} | {row['tasks']['facts']:.1%} | "
        f"{row['mean_exact_match']:.2%} | {seen} |"
    )
