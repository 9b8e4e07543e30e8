"""A finished sweep: `moe-export sweep recipes/demo_sweep.yaml`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json
from moe_export.reporting.sweep_table import sweep_markdown as markdown
from tools.pages.page import rounded, write_page

SPEEDS = ("decode_tokens_per_s", "decode_ratio", "speed_setting")

__all__ = ["add_options", "make", "markdown"]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("run", type=Path, help="run directory of the sweep")
    parser.add_argument(
        "--without-speed", action="store_true", help="leave speeds out, if the machine was busy"
    )


def make(arguments: argparse.Namespace) -> None:
    """Writes the page of a finished sweep."""
    sweep = load_json(arguments.run / "sweep" / "sweep.json")
    content = rounded(timeless(sweep) if arguments.without_speed else sweep)
    write_page("sweep", content, markdown(content))


def timeless(value: Any) -> Any:
    """Plain values with None for every speed."""
    if isinstance(value, dict):
        return {k: None if k in SPEEDS else timeless(v) for k, v in value.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value
