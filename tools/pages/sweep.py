"""A finished sweep: `moe-export sweep recipes/demo_sweep.yaml`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_export.artifacts.sweep import Sweep
from moe_export.reporting.sweep_table import sweep_markdown
from tools.pages.page import artifact, plain, rounded, write_page

SPEEDS = ("decode_tokens_per_s", "decode_ratio", "speed_setting")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the page."""
    parser.add_argument("run", type=Path, help="run directory of the sweep")
    parser.add_argument(
        "--without-speed", action="store_true", help="leave speeds out, if the machine was busy"
    )


def make(arguments: argparse.Namespace) -> None:
    """Writes the page of a finished sweep."""
    sweep = plain(Sweep.load(arguments.run / "sweep"))
    data = rounded(timeless(sweep) if arguments.without_speed else sweep)
    write_page("sweep", data, markdown(data))


def markdown(data: Mapping[str, Any]) -> str:
    """Renders the page from its figures, the content of `Sweep`."""
    return sweep_markdown(artifact(Sweep, data))


def timeless(value: Any) -> Any:
    """Plain values with None for every speed."""
    if isinstance(value, dict):
        return {k: None if k in SPEEDS else timeless(v) for k, v in value.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value
