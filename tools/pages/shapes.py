"""Mixers of every kind at the sizes of released models: memory of each stage, state of a token.

    python -m tools.pages shapes HOME [--models NAME ...] [--sequences N]

Makes checkpoints of a few layers of random weights in HOME, with the sizes of LFM2-8B-A1B,
GLM-4.7-Flash and Qwen3.5-35B-A3B but 32,000 tokens, runs the main job on each with one process for
each stage, decodes with the exported models, and writes the page. Files that are there already are
not made again, so an interrupted command resumes. `--models` replaces the figures of some models;
their checkpoints and runs take 4, 6 and 13 GB of disk and can be removed afterwards.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.pages.page import data_file, read_data, rounded, write_page
from tools.pages.shapes_run import MODELS, figures_of
from tools.pages.shapes_text import markdown

__all__ = ["add_options", "make", "markdown"]

NAME = "shapes"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("home", type=Path, help="folder for all files; is created")
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="default: all"
    )
    parser.add_argument(
        "--sequences", type=int, default=8, help="calibration sequences of 512 tokens (default: 8)"
    )


def make(arguments: argparse.Namespace) -> None:
    """Measures the models that are asked for and writes the page after each."""
    home = arguments.home.absolute()
    for name in arguments.models:
        found = rounded(figures_of(name, home / name, arguments.sequences))
        held = (read_data(NAME) if data_file(NAME).exists() else {}) | {name: found}
        ordered = {each: held[each] for each in MODELS if each in held}
        write_page(NAME, ordered, markdown(ordered))
