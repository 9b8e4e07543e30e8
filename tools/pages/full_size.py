"""The main job at full size on a small machine: memory and time of every stage.

    python -m tools.pages full_size HOME [--layers N]
    python -m tools.pages full_size HOME --dense
    python -m tools.pages full_size HOME --workers
    python -m tools.pages full_size HOME --costs FILE

Makes a checkpoint of the shapes of Qwen1.5-MoE-A2.7B (28.6 GB of random weights) and a recipe in
HOME, runs it with one process for each stage, times `cp` there, and writes the page. Files that are
there already are not made again, so an interrupted command resumes. It needs about 57 GB of disk
for all 24 layers; the run can be removed afterwards.

`--dense` continues from there: it exports the same model with nothing removed, in the same formats,
has both decode in turn, and adds their speeds to the page. It needs about 46 GB beside the
checkpoint and `run/export`; the rest of the first part can be removed before.

`--workers` scores three layers of the same shapes with one process and with two, one thread each,
and adds their times. It needs 5 GB.

`--costs FILE` adds what `python -m tools.trust costs HOME --layers 24 --out FILE` measured: the
three stages that copy weights, with hashing and syncing and without. It needs 54 GB, checkpoint
included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tools.pages.full_size_run import against_dense, collect, prepare, shared_out
from tools.pages.full_size_text import markdown
from tools.pages.page import read_data, rounded, write_page
from tools.pages.stage_runs import STAGES, carry_out

__all__ = ["add_options", "make", "markdown"]

NAME = "full_size"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("home", type=Path, help="folder for all files; is created")
    parser.add_argument("--layers", type=int, help="number of layers (default: all 24)")
    parser.add_argument("--dense", action="store_true", help="second part: dense decoding")
    parser.add_argument("--workers", action="store_true", help="third part: two processes")
    parser.add_argument("--costs", type=Path, metavar="FILE", help="fourth part: hashing, syncing")


def make(arguments: argparse.Namespace) -> None:
    """Measures the part that is asked for and writes the page."""
    home = arguments.home.absolute()
    if arguments.dense:
        figures = read_data(NAME) | {"turns": against_dense(home)}
    elif arguments.workers:
        figures = read_data(NAME) | {"workers": shared_out(home)}
    elif arguments.costs is not None:
        costs = json.loads(arguments.costs.read_text(encoding="utf-8"))["costs"]
        figures = read_data(NAME) | {"costs": costs}
    else:
        prepare(home, arguments.layers)
        for stage in STAGES:
            carry_out(home / "recipe.yaml", home / "run", stage)
        figures = collect(home)
    content = rounded(figures)
    write_page(NAME, content, markdown(content))
