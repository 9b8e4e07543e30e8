"""The effect of measuring the exchange rate of rounding and dropping, on the demo model.

The demo model at many budgets: the plan's choice by the scores as they are, its choice by the rates
that were measured, and each format filled up to the budget; scored in torch with masked dimensions
and dequantized weights.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.exchange import Exchange
from moe_export.artifacts.importance import Importance
from moe_export.evaluation.differences import kl_difference
from moe_export.evaluation.masking import tally_tasks
from moe_export.evaluation.tally import mean_exact_match
from moe_export.experts import kept_rows
from moe_export.families import open_checkpoint
from moe_export.families.axis import Axis
from moe_export.formats import FORMATS
from moe_export.graph import predicted_bytes
from moe_export.planning.allocation import Allocation, Budget, Costs, allocate, format_errors
from moe_export.planning.blocks import WidthRule
from moe_export.planning.shares import token_shares
from moe_export.quantization import FormatWord, Quantization
from moe_export.recipe.load import load_recipe
from moe_export.torch_model import load_torch_model
from tools.pages.demo_runs import carried_out, scored_tasks
from tools.pages.page import rounded, write_page

RECIPE = Path("recipes/demo_sweep.yaml")
BUDGETS = (
    *(0.6, 0.5, 0.4, 0.36, 0.34, 0.32, 0.3, 0.29, 0.28, 0.27),
    *(0.26, 0.25, 0.24, 0.23, 0.22, 0.21, 0.2, 0.18, 0.16),
)
"""Shares of the bytes of the unpruned model."""

NAMES: tuple[FormatWord, ...] = ("float", "int8", "int4")
UNIFORM: tuple[FormatWord, ...] = ("int8", "int4")
"""Float alone is far behind at these budgets, see docs/results/sweep.md."""

GROUP_SIZE = 32


class Measuring:
    """The calibrated demo model, which is changed to an allocation and scored."""

    def __init__(self, directory: Path, items: int) -> None:
        recipe = load_recipe(RECIPE)
        model = carried_out(recipe, directory, "importance")
        self.checkpoint, self.spec = open_checkpoint(model)
        importance = Importance.load(directory / "importance")
        self.ranked, self.rounding = (
            importance.scores["fisher_margin"],
            importance.scores["rounding_margin"],
        )
        self.shares = token_shares(importance.tokens_per_expert, self.spec.top_k)
        self.exchange = Exchange.load(directory / "importance")
        self.errors = [
            format_errors(self.checkpoint, self.spec, layer, NAMES, GROUP_SIZE)
            for layer in range(self.spec.num_layers)
        ]
        self.whole_bytes = predicted_bytes(self.spec, "float32", "portable").total_bytes
        self.tasks = scored_tasks(recipe, model, items)
        self.dense = load_torch_model(model, torch.float32)
        self.changed = load_torch_model(model, torch.float32)
        self._known: dict[Any, dict[str, Any]] = {}

    def choice(
        self, share: float, names: Sequence[FormatWord], rates: Sequence[float]
    ) -> Allocation:
        """Allocation of the plan at a share of the bytes."""
        rounding = [rate * layer_R for rate, layer_R in zip(rates, self.rounding, strict=True)]
        return allocate(
            Axis(self.spec),
            Costs(
                importance=self.ranked,
                rounding=rounding,
                shares=self.shares,
                errors=[{name: of[name] for name in names} for of in self.errors],
            ),
            Quantization("float", "float", "float", GROUP_SIZE),
            Budget(size_bytes=round(share * self.whole_bytes), active=False, dtype="float32"),
            WidthRule(),
        )

    def scores(self, chosen: Allocation) -> dict[str, Any]:
        """KL and exact match, and the figures of each document behind them."""
        formats = chosen.quantization.experts
        by_layer = (formats,) * self.spec.num_layers if isinstance(formats, str) else formats
        key = (chosen.widths, by_layer)
        if key not in self._known:
            self._change(chosen.widths, by_layer)
            tallies = tally_tasks(self.changed, self.tasks, self.dense)
            scores = {name: tally.scores() for name, tally in tallies.items()}
            self._known[key] = {
                "kept": sum(map(sum, chosen.widths)) / sum(map(sum, self.spec.widths)),
                "formats": list(by_layer),
                "kl_nats": float(np.mean([score.kl_nats for score in scores.values()])),
                "exact_match": mean_exact_match(scores),
                "documents": {name: t.document_scores() for name, t in tallies.items()},
            }
        return self._known[key]

    def _change(self, widths: Sequence[Sequence[int]], formats: Sequence[FormatWord]) -> None:
        parameters = dict(self.changed.named_parameters())
        for layer, name in enumerate(formats):
            kept = kept_rows(self.ranked[layer], Axis(self.spec).tables[layer], widths[layer])
            for expert, rows in enumerate(kept):
                for role in ("gate", "up", "down"):
                    tensor = self.spec.name(role, layer, expert)
                    values = self._rounded(self.checkpoint.read(tensor), name)
                    if role == "down":
                        dropped = np.delete(np.arange(values.shape[1]), rows)
                        values[:, dropped] = 0
                    parameters[tensor].copy_(torch.from_numpy(values))

    def _rounded(self, values_NK: NDArray[Any], name: FormatWord) -> NDArray[np.float32]:
        values = values_NK.astype(np.float32)
        if name == "float":
            return values
        turned = np.ascontiguousarray(values.T)
        made = FORMATS[name](turned, GROUP_SIZE, "float16").dequantized()
        return np.ascontiguousarray(made.T)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("--run", type=Path, help="run directory to keep (default: a temporary one)")
    parser.add_argument("--items", type=int, default=100, help="documents of each task")


def make(arguments: argparse.Namespace) -> None:
    """Measures every budget and writes the page."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(Measuring(arguments.run or Path(scratch) / "run", arguments.items))
    content = rounded(rows | {"items": arguments.items})
    write_page("exchange", content, markdown(content))


def measure(model: Measuring) -> dict[str, Any]:
    """Rows of every budget, and the exchange rates that the importance stage measured."""
    rows = []
    rates = model.exchange.rates
    for share in BUDGETS:
        ways = {
            "scored": model.scores(model.choice(share, NAMES, [1.0] * len(rates))),
            "measured": model.scores(model.choice(share, NAMES, rates)),
        }
        uniform = {name: model.scores(model.choice(share, (name,), rates)) for name in UNIFORM}
        best = min(uniform, key=lambda name: uniform[name]["kl_nats"])
        ways["uniform"] = uniform[best]
        row: dict[str, Any] = {"budget": share}
        for name, scores in ways.items():
            row[name] = {key: value for key, value in scores.items() if key != "documents"}
        for other in ("scored", "uniform"):
            gap = kl_difference(ways["measured"]["documents"], ways[other]["documents"])
            row[f"against_{other}"] = asdict(gap) | {"is_within_error": gap.is_within_error}
        rows.append(row)
    return {"exchange": asdict(model.exchange) | {"rates": rates}, "rows": rows}


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    exchange = data["exchange"]
    rates = ", ".join(f"{rate:.2f}" for rate in exchange["rates"])
    introduction = (
        "Made by `python -m tools.pages exchange`. The demo model at shares of its unpruned bytes, "
        "as the plan fills them with `quantize.experts: auto`: with rounding and dropping weighed "
        "by their scores alone, as it was before, and with what rounding costs multiplied by the "
        "rates that the importance stage has measured (`moe_export/artifacts/exchange.py`); beside "
        "them the better of int8 and int4 in all layers alike. Masked and dequantized in torch, "
        f"formats rounded to nearest; KL from the unpruned model in nats, mean over five tasks of "
        f"{data['items']} documents. A verdict is that of the measured rates, by two standard "
        "errors of the difference on the same documents."
    )
    head = (
        "| budget | by the scores | KL | by measured rates | KL | best uniform | KL | "
        "against the scores | against uniform |"
    )
    lines = [
        "# Rounding against dropping",
        "",
        introduction,
        "",
        f"Rates by layer, from {exchange['tokens']} tokens of the calibration set: {rates}.",
        "",
        head,
        "| ---: | --- | ---: | --- | ---: | --- | ---: | --- | --- |",
    ]
    for row in data["rows"]:
        cells = [f"{row['budget']:.0%}"]
        for way in ("scored", "measured", "uniform"):
            cells += [_words(row[way]), f"{row[way]['kl_nats']:.3g}"]
        cells += [_verdict(row[f"against_{other}"]) for other in ("scored", "uniform")]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(_sum(data["rows"], other) for other in ("scored", "uniform"))]
    return "\n".join(lines) + "\n"


def _words(scores: dict[str, Any]) -> str:
    formats = scores["formats"]
    named = formats[0] if len(set(formats)) == 1 else " / ".join(formats)
    return f"{scores['kept']:.0%}, {named}"


def _verdict(gap: dict[str, Any]) -> str:
    if gap["value"] == 0:
        return "the same"
    if gap["is_within_error"]:
        return "equal within error"
    return "better" if gap["value"] < 0 else "worse"


def _sum(rows: Sequence[dict[str, Any]], other: str) -> str:
    verdicts = [_verdict(row[f"against_{other}"]) for row in rows]
    counts = ", ".join(
        f"{word} at {verdicts.count(word)}"
        for word in ("better", "the same", "equal within error", "worse")
    )
    against = "the choice by the scores" if other == "scored" else "the best uniform format"
    return f"Against {against}, of {len(rows)} budgets: {counts}.\n"
