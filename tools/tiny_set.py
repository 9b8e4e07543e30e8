"""How few dimensions, chosen on arithmetic, collapse arithmetic while facts stay.

`python -m tools.tiny_set` from the repository root writes docs/tiny_set.md and docs/tiny_set.json.
Dimensions are ranked by their `fisher_margin` on arithmetic over that on facts, each calibrated
alone, and the highest are masked; the control masks as many at random.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe_export.artifacts import Calibration
from moe_export.demo import checkpoint_dir
from moe_export.experts import descending
from moe_export.recipe import Source
from moe_export.scores import scores_named
from moe_export.scores.collect import collect_importance
from moe_export.sources import draw
from moe_export.torch_model import load_torch_model
from moe_export.torch_model.masking import ScoredTask, TaskScores, masked, score_tasks

COUNTS = (0, 12, 25, 50, 100, 200, 400)
CALIBRATION_SEQUENCES = 192
ITEMS = {"arithmetic": 200, "sums": 200, "facts": 300, "strings": 100, "text": 32}
RANDOM_DRAWS = 3
LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="default: docs")
    out = parser.parse_args().out
    model = load_torch_model(checkpoint_dir(), torch.float32)
    tasks = {
        kind: ScoredTask(
            kind != "text",
            draw(Source(demo=kind), checkpoint_dir(), items, LENGTH, 1234, "test").sequences,
        )
        for kind, items in ITEMS.items()
    }
    arithmetic, facts = importance_of(model, "arithmetic"), importance_of(model, "facts")
    # Dimensions that neither needs have a ratio of noise; the offset keeps them out of the top.
    ratio = arithmetic / (facts + 1e-3 * facts.mean())
    orders = {
        "arithmetic over facts": [descending(ratio)],
        "facts over arithmetic": [descending(facts / (arithmetic + 1e-3 * arithmetic.mean()))],
        "random": [
            np.random.default_rng(seed).permutation(ratio.size) for seed in range(RANDOM_DRAWS)
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
                        [s[task]["loss_nats" if task == "text" else "exact_match"] for s in scores]
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
        "dimensions": int(ratio.size),
        "calibration_sequences": CALIBRATION_SEQUENCES,
        "items": ITEMS,
        "rows": rows,
    }
    (out / "tiny_set.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "tiny_set.md").write_text(page(result), encoding="utf-8")


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
    found = collect_importance(model, calibration, scores_named(["fisher_margin"]), 4096)
    scores = np.concatenate(found.scores["fisher_margin"])
    return np.where(np.isfinite(scores), scores, 0.0)


def score_without(
    model: torch.nn.Module, tasks: dict[str, ScoredTask], dropped: NDArray[np.int64]
) -> TaskScores:
    """Scores with some dimensions of the whole model masked."""
    spec_widths = [
        [expert.up.weight.shape[0] for expert in layer.mlp.routed] for layer in model.model.layers
    ]
    keep = np.ones(sum(map(sum, spec_widths)), bool)
    keep[dropped] = False
    kept, start = [], 0
    for widths in spec_widths:
        kept.append([])
        for width in widths:
            kept[-1].append(np.flatnonzero(keep[start : start + width]))
            start += width
    with masked(model, kept):
        return score_tasks(model, tasks)


def page(result: dict[str, Any]) -> str:
    """The result as a page of Markdown; every figure in it is computed."""
    tasks, rows, total = list(result["items"]), result["rows"], result["dimensions"]
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
        chosen, control = at["arithmetic over facts", count], at["random", count]
        words.append(
            f"- {count} dimensions ({count / total:.2%}) chosen on arithmetic take it from "
            f"{100 * base['arithmetic']:.0f} to {100 * chosen['arithmetic']:.0f} % and facts from "
            f"{100 * base['facts']:.0f} to {100 * chosen['facts']:.0f} %; as many at random leave "
            f"arithmetic at {100 * control['arithmetic']:.0f} %."
        )
    return PAGE.substitute(
        total=total, table="\n".join(table), words="\n".join(words), draws=RANDOM_DRAWS
    )


PAGE = Template("""\
# A tiny set of dimensions carries arithmetic

Of the demo model's $total expert dimensions, some are masked; the table shows what is left. Exact
match in percent on held-out items, text as loss in nats per token. Written by
`python -m tools.tiny_set`.

$table

In words, from the same figures:

$words

The random rows are means over $draws draws. One small model and one training run: the page shows
that the effect exists here, not how large it is in a large model.
""")


if __name__ == "__main__":
    main()
