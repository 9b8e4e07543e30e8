"""Writes a sweep into the documents: docs/results/data/sweep.json and docs/results/sweep.md.

python -m tools.pages.sweep runs/demo_sweep_sweep [--without-speed]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json
from moe_export.reporting.sweep_table import sweep_markdown
from tools.pages.demo_compare import rounded

SPEEDS = ("decode_tokens_per_s", "decode_ratio", "speed_setting")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="of `moe-export sweep recipes/demo_sweep.yaml`")
    parser.add_argument(
        "--without-speed", action="store_true", help="where the machine had other work to do"
    )
    arguments = parser.parse_args()
    sweep = load_json(arguments.run / "sweep" / "sweep.json")
    content = rounded(timeless(sweep) if arguments.without_speed else sweep)
    Path("docs/results/data/sweep.json").write_text(
        json.dumps(content, indent=1) + "\n", encoding="utf-8"
    )
    Path("docs/results/sweep.md").write_text(sweep_markdown(content), encoding="utf-8")


def timeless(value: Any) -> Any:
    """The same without any speed."""
    if isinstance(value, dict):
        return {k: None if k in SPEEDS else timeless(v) for k, v in value.items()}
    return [timeless(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
