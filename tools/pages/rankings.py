"""`plan.score: auto` beside its candidates, on one or several models.

A model is given as NAME=RUN, with the finished run of a recipe with a bakeoff section, such as
recipes/demo_auto.yaml; several runs of one model, such as one for each draw, are joined by commas.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_export.artifacts.bakeoff import Bakeoff
from moe_export.reporting.bakeoff_table import Ranking, bakeoff_markdown, rankings
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import figures, percent, points
from tools.pages.page import artifact, data_file, plain, read_data, rounded, write_page

NAME = "rankings"

INTRODUCTION = """\
# The choice of a ranking

Made by `python -m tools.pages rankings NAME=RUN ...`, with a finished run of
[demo_auto.yaml](../../recipes/demo_auto.yaml) or
[smollm2_auto.yaml](../../recipes/smollm2_auto.yaml) for each model. `auto` measures its candidates
on held-out calibration sequences, and never sees the tasks below.
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument(
        "models",
        nargs="*",
        metavar="NAME=RUN[,RUN]",
        help="finished runs of a model; other models keep their committed figures",
    )


def make(arguments: argparse.Namespace) -> None:
    """Writes the page."""
    data: dict[str, Any] = read_data(NAME) if data_file(NAME).exists() else {}
    for model in arguments.models:
        name, _, runs = model.partition("=")
        found = [Bakeoff.load(Path(run) / "bakeoff") for run in runs.split(",")]
        data[name] = rounded(plain(joined(found)))
    write_page(NAME, data, markdown(data))


def joined(parts: Sequence[Bakeoff]) -> Bakeoff:
    """One comparison of the draws of several.

    Raises:
        ValueError: They have other tasks, or another baseline.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.baseline != first.baseline:
            raise ValueError("the runs scored other documents; give runs of one recipe")
    return first.model_copy(
        update={"results": tuple(result for part in parts for result in part.results)}
    )


def markdown(data: Mapping[str, Any]) -> str:
    """Renders the page from its figures, the content of `Bakeoff` by name of the model."""
    blocks = [INTRODUCTION]
    for name, content in data.items():
        bakeoff = artifact(Bakeoff, content)
        _, *sections = bakeoff_markdown(bakeoff).split("\n## ")
        blocks += [f"## {name}\n", _introduction(bakeoff), table(summary(bakeoff)), ""]
        blocks += [f"### {section}" for section in sections]
    return "\n".join(blocks)


def _introduction(bakeoff: Bakeoff) -> str:
    draws = len({result.seed for result in bakeoff.results})
    over = f"means over {draws} calibration draws" if draws > 1 else "one calibration draw"
    return (
        f"Figures are {over}. The best named ranking is the one with the best mean. Text is the "
        "mean loss over the tasks without answers, nats per token.\n"
    )


def summary(bakeoff: Bakeoff) -> Table:
    """`auto` against the named ranking with the best mean, at every `keep`."""
    rows = []
    for keep in sorted({result.keep for result in bakeoff.results}, reverse=True):
        for refitted in (False, True):
            ranked = [r for r in rankings(bakeoff, keep) if r.refitted == refitted]
            ours = next((r for r in ranked if r.score == "auto"), None)
            others = [r for r in ranked if r.score != "auto"]
            if ours is None or not others:
                continue
            best = others[0]
            way = "refitted" if refitted else "masked"
            rows.append([percent(keep), way, best.name, *_figures(ours), *_figures(best)])
    head = [
        "kept", "down", "best named ranking", "auto, mean, %", "auto, text, nats",
        "best, mean, %", "best, text, nats",
    ]  # fmt: skip
    return Table(head, rows, words=3)


def _figures(ranking: Ranking) -> tuple[str, str]:
    losses = [
        spread.mean
        for task, spread in ranking.losses.items()
        if spread is not None and ranking.rates[task] is None
    ]
    mean = points(ranking.mean.mean) if ranking.mean else "–"
    return mean, figures(sum(losses) / len(losses)) if losses else "–"
