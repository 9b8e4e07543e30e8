"""The rankings compared on the demo model, in docs/results and as a small table in README.md."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.bakeoff import Bakeoff
from moe_export.reporting.bakeoff_table import bakeoff_markdown, keep_table, rankings
from moe_export.reporting.markdown import table
from moe_export.reporting.tables import Table
from moe_export.reporting.units import percent
from tools.pages.page import artifact, plain, read_data, rounded, write_page

README = Path(__file__).parents[2] / "README.md"
MARKS = re.compile(r"(<!-- *demo_compare *-->).*?(<!-- */demo_compare *-->)", re.DOTALL)
"""The two marks in the README and the lines between them."""

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
    README.write_text(with_table(README.read_text(encoding="utf-8"), data), encoding="utf-8")


def markdown(data: Mapping[str, Any]) -> str:
    """Renders the page from its figures, the content of `Bakeoff`."""
    return bakeoff_markdown(artifact(Bakeoff, data))


def with_table(readme: str, data: Mapping[str, Any]) -> str:
    """The README with `small_table` between its two marks.

    Args:
        readme: Text of the README, with the marks `<!-- demo_compare -->` and
            `<!-- /demo_compare -->` once each.
        data: Figures of the page, the content of `Bakeoff`.

    Raises:
        ValueError: The marks are not there exactly once.
    """
    content = table(small_table(artifact(Bakeoff, data)))
    filled, count = MARKS.subn(lambda marks: f"{marks[1]}\n{content}\n{marks[2]}", readme)
    if count != 1:
        raise ValueError(
            f"README.md: found the marks <!-- demo_compare --> and <!-- /demo_compare --> {count} "
            "times, expected them once; put both around the place of the table"
        )
    return filled


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
