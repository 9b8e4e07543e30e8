"""Mixers of every kind at the sizes of released models: memory of each stage, state of a token.

    python -m tools.pages shapes HOME [--models NAME ...] [--sequences N]
    python -m tools.pages shapes HOME --llama-cpp LIBRARIES SOURCES [--models NAME ...]

Makes checkpoints of a few layers of random weights in HOME, with the sizes of LFM2-8B-A1B,
GLM-4.7-Flash and Qwen3.5-35B-A3B but 32,000 tokens, runs the main job on each with one process for
each stage, decodes with the exported models, and writes the page. Files that are there already are
not made again, so an interrupted command resumes. `--models` replaces the figures of some models;
their checkpoints and runs take 4, 6 and 13 GB of disk and can be removed afterwards.

With `--llama-cpp` it times decoding beside llama.cpp instead: LIBRARIES as for `python -m
tools.pages speed`, SOURCES as in tools/gguf/converted.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moe_export.families import spec_of
from tools.pages.page import data_file, read_data, rounded, write_page
from tools.pages.shapes_peer import peer_config, prepare, timed
from tools.pages.shapes_run import MODELS, VOCABULARY, figures_of
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
    parser.add_argument(
        "--llama-cpp",
        type=Path,
        nargs=2,
        metavar=("LIBRARIES", "SOURCES"),
        help="time decoding beside llama.cpp instead",
    )


def make(arguments: argparse.Namespace) -> None:
    """Measures the models that are asked for and writes the page after each."""
    home = arguments.home.absolute()
    for name in arguments.models:
        held = read_data(NAME) if data_file(NAME).exists() else {}
        known = held.get(name, {})
        if arguments.llama_cpp is None:
            found = figures_of(name, home / name, arguments.sequences)
        else:
            found = {"peer": beside_llama_cpp(name, home / f"{name}-peer", *arguments.llama_cpp)}
        held[name] = known | rounded(found)
        ordered = {each: held[each] for each in MODELS if each in held}
        write_page(NAME, ordered, markdown(ordered))


def beside_llama_cpp(name: str, home: Path, libraries: Path, sources: Path) -> dict[str, Any]:
    """Makes the files of a model if they are missing, and times them.

    Args:
        name: Key of `MODELS`.
        home: Folder of the files.
        libraries: Folder of llama.cpp's libraries.
        sources: Folder of its sources.
    """
    shape = MODELS[name]
    config = peer_config(shape.family, shape.size, shape.layers, VOCABULARY)
    prepare(config, home, libraries, sources)
    spec = spec_of(config)
    facts = {"mixers": list(spec.mixers), "experts": spec.num_experts, "top_k": spec.top_k}
    return facts | timed(home, libraries)
