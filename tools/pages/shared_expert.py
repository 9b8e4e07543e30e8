"""The effect of pruning the shared expert too, on the demo model.

The demo model is planned to the same bytes with `plan.shared_expert: keep` and `prune`, and each
copy is scored in torch.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch

from moe_export.artifacts.plan import Plan
from moe_export.recipe.load import load_recipe
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out, scored_tasks, scores_of
from tools.pages.page import rounded, write_page

RECIPE = Path("recipes/demo_50pct.yaml")
BUDGETS = {
    "target_active_bytes": ("active_bytes_per_token", (0.9, 0.8, 0.7, 0.6)),
    "target_bytes": ("total_bytes", (0.6, 0.4, 0.3)),
}
"""Budget of the plan to the bytes that it limits, and to shares of the unpruned model's bytes."""

WORDS = ("keep", "prune")
DTYPE = "float32"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("--run", type=Path, help="run directory to keep (default: a temporary one)")
    parser.add_argument("--items", type=int, default=150, help="documents of each task")


def make(arguments: argparse.Namespace) -> None:
    """Measures every budget and writes the page."""
    with tempfile.TemporaryDirectory() as scratch:
        content = rounded(measure(arguments.run or Path(scratch), arguments.items))
    write_page("shared_expert", content, markdown(content))


def measure(directory: Path, items: int) -> dict[str, Any]:
    """Rows of every budget with both words; a run for each word, so that it is scored once."""
    whole = load_recipe(RECIPE, ("plan.keep=1.0",))
    model = carried_out(whole, directory / "keep", "plan")
    plan = Plan.load(directory / "keep" / "plan")
    before = plan.export_bytes[DTYPE].before.plain()
    dense, tasks = load_torch_model(model, torch.float32), scored_tasks(whole, model, items)
    results = []
    points = ((key, *of) for key, (_, shares) in BUDGETS.items() for of in product(shares, WORDS))
    for key, share, word in points:
        target = round(share * before[BUDGETS[key][0]])
        words = ("plan.keep=null", f"plan.{key}={target}")
        recipe = load_recipe(RECIPE, (*words, f"plan.shared_expert={word}", "prune.refit=false"))
        carried_out(recipe, directory / word, "prune")
        plan = Plan.load(directory / word / "plan")
        pruned = load_torch_model(directory / word / "prune", torch.float32)
        after = plan.export_bytes[DTYPE].after
        results.append(
            {
                "budget": key,
                "share": share,
                "shared_expert": word,
                "active_bytes_per_token": after.active_bytes_per_token,
                "total_bytes": after.total_bytes,
                "routed_kept": sum(sum(layer.widths) for layer in plan.layers)
                / sum(map(sum, plan.widths_before)),
                "shared_widths": [layer.shared_width for layer in plan.layers],
                **scores_of(pruned, tasks, dense),
            }
        )
    return {
        "items": items,
        "before": {key: before[key] for key in ("active_bytes_per_token", "total_bytes")},
        "baseline": scores_of(dense, tasks, None),
        "results": results,
    }


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    baseline, before = data["baseline"], data["before"]
    lines = [
        "# Pruning the shared expert too",
        "",
        (
            "Made by `python -m tools.pages shared_expert`. The demo model planned by "
            "`fisher_margin` to the same bytes with `plan.shared_expert` keep and prune; scored in "
            "torch. KL is from the unpruned model, and it and the loss are means per token of "
            "held-out text; exact match is the mean over four tasks of "
            f"{data['items']} documents. A token reads two of sixteen routed experts and the "
            "shared one, all of 128 dimensions."
        ),
        "",
        (
            f"Unpruned: {_mib(before['active_bytes_per_token'])} read per token, "
            f"{_mib(before['total_bytes'])} stored, {baseline['mean_exact_match']:.2%} exact "
            f"match, {baseline['text_loss_nats']:.4f} nats."
        ),
    ]
    for key, title in (
        ("target_active_bytes", "The same bytes read per token"),
        ("target_bytes", "The same bytes stored"),
    ):
        rows = [row for row in data["results"] if row["budget"] == key]
        lines += ["", f"## {title}", "", _verdict(rows), "", *_table(rows)]
    return "\n".join([*lines, ""])


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        (
            "| budget | shared expert | read per token | stored | routed kept | shared widths | "
            "text KL, nats | text loss, nats | facts | exact match |"
        ),
        "| ---: | --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        widths = ", ".join(str(w) for w in row["shared_widths"] if w is not None) or "whole"
        lines.append(
            f"| {row['share']:.0%} | {row['shared_expert']} | "
            f"{_mib(row['active_bytes_per_token'])} | {_mib(row['total_bytes'])} | "
            f"{row['routed_kept']:.1%} | {widths} | {row['text_kl_nats']:.4f} | "
            f"{row['text_loss_nats']:.4f} | {row['tasks']['facts']:.1%} | "
            f"{row['mean_exact_match']:.2%} |"
        )
    return lines


def _verdict(rows: list[dict[str, Any]]) -> str:
    """Comparison of the two words over the budgets, in a sentence."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    ratios = [prune["text_kl_nats"] / keep["text_kl_nats"] for keep, prune in pairs]
    gains = [prune["mean_exact_match"] - keep["mean_exact_match"] for keep, prune in pairs]
    return (
        f"With prune, KL is {', '.join(f'{ratio:.2f}' for ratio in ratios)} times that with keep, "
        f"and exact match differs by {', '.join(f'{100 * gain:+.2f}' for gain in gains)} points."
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.2f} MiB"
