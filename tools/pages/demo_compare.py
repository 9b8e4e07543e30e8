"""The rankings compared on the demo model, in docs/results and as a small table in README.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.bakeoff import Bakeoff
from moe_export.reporting.bakeoff_table import bakeoff_markdown, keep_table, rankings
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import percent
from tools.pages import readme
from tools.pages.page import artifact, plain, read_data, rounded, write_page

KEEPS = (0.5, 0.25)
MOST_RANKINGS = 5
COLUMNS = ("arithmetic, %", "facts, %", "text, nats", "mean, %")
UNPRUNED = "unpruned"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument(
        "run",
        type=Path,
        nargs="?",
        help="finished run of recipes/demo_compare.yaml (default: the committed figures)",
    )


def make(arguments: argparse.Namespace) -> None:
    """Writes the page and the table of the README."""
    if arguments.run is None:
        data = read_data("demo_compare")
    else:
        data = rounded(plain(Bakeoff.load(arguments.run / "bakeoff")))
    write_page("demo_compare", data, markdown(data))
    readme.write("demo_compare", readme_table(data))


def markdown(data: Mapping[str, Any]) -> str:
    """Renders the page from its figures, the content of `Bakeoff`."""
    return bakeoff_markdown(artifact(Bakeoff, data))


def readme_table(data: Mapping[str, Any]) -> str:
    """Renders `small_table` from the figures of the page, the content of `Bakeoff`."""
    return table(small_table(artifact(Bakeoff, data)))


def small_table(bakeoff: Bakeoff) -> Table:
    """Means over the calibration draws of the best rankings at the shares in `KEEPS`.

    Args:
        bakeoff: Results of all rankings.
    """
    rows: list[list[str]] = []
    strong: set[tuple[int, int]] = set()
    best = _best_rankings(bakeoff)
    for keep in KEEPS:
        whole = keep_table(bakeoff, keep)
        columns = [list(whole.head).index(name) for name in COLUMNS]
        for number, cells in enumerate(whole.rows):
            if cells[0] in best:
                strong |= {
                    (len(rows), 2 + place)
                    for place, column in enumerate(columns)
                    if (number, column) in whole.strong
                }
                rows.append([percent(keep), cells[0], *(_mean(cells[c]) for c in columns)])
    unpruned = next(cells for cells in whole.rows if cells[0] == UNPRUNED)
    rows.append([percent(1.0), UNPRUNED, *(unpruned[column] for column in columns)])
    return Table(["kept", "ranking", *COLUMNS], rows, words=2, strong=frozenset(strong))


def _best_rankings(bakeoff: Bakeoff) -> set[str]:
    """Names of the rankings with the best mean exact match over `KEEPS`."""
    sums: dict[str, float] = {}
    for keep in KEEPS:
        for ranking in rankings(bakeoff, keep):
            mean = ranking.mean.mean if ranking.mean else 0.0
            sums[ranking.name] = sums.get(ranking.name, 0.0) + mean
    return set(sorted(sums, key=lambda name: -sums[name])[:MOST_RANKINGS])


def _mean(cell: str) -> str:
    """The mean of a cell that also gives the least and the greatest value."""
    return cell.partition("\n")[0]
