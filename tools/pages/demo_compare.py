"""Writes the bake-off into the documents: docs/results/data/demo_compare.json, docs/results/demo_compare.md, README.md.

python -m tools.pages.demo_compare runs/demo_compare
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from moe_export.artifacts.base import load_json
from moe_export.reporting.bakeoff_table import bakeoff_markdown

BEGIN, END = "<!-- demo_compare -->\n", "<!-- /demo_compare -->"
README_KEEPS = (0.5, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run of recipes/demo_compare.yaml")
    bakeoff = load_json(parser.parse_args().run / "bakeoff" / "bakeoff.json")
    text = json.dumps(rounded(bakeoff), indent=1) + "\n"
    Path("docs/results/data/demo_compare.json").write_text(text, encoding="utf-8")
    Path("docs/results/demo_compare.md").write_text(
        bakeoff_markdown(rounded(bakeoff)), encoding="utf-8"
    )
    readme = Path("README.md")
    readme.write_text(with_tables(readme.read_text(encoding="utf-8"), rounded(bakeoff)), "utf-8")


def with_tables(readme: str, bakeoff: dict[str, Any]) -> str:
    """The README with the tables of `README_KEEPS` between its two marks."""
    results = [r for r in bakeoff["results"] if r["keep"] in README_KEEPS]
    page = bakeoff_markdown(bakeoff | {"results": results})
    tables = page[page.index("## ") :].replace("## ", "### ")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}{tables}{END}{rest.split(END)[1]}"


def rounded(value: Any) -> Any:
    """Floats to six decimals: more is noise, and makes the committed file long."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return value


if __name__ == "__main__":
    main()
