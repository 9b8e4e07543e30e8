"""Compares the files that two checkouts of moe-export write from the same recipes, byte by byte.

`python -m tools.same_bytes OLD NEW --home DIR`, where OLD and NEW are the interpreters of two
environments, each with one checkout installed. Each runs `demo_50pct`, `demo_50pct_int4` and a
packed export with one thread in a folder of its own below DIR. Model files, tensor files and
tokenizer files must be equal; text that may change (JSON, Markdown, HTML) is listed.

Exits with 1 if a file that must be equal differs or exists on one side only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

RECIPES = {
    "demo_50pct": ("demo_50pct", ()),
    "demo_50pct_int4": ("demo_50pct_int4", ()),
    "demo_50pct_packed": ("demo_50pct_int4", ("export.layout=packed",)),
}
CHEAP = ("validate.speed.repeats=1", "validate.speed.batch_sizes=[1]", "validate.speed.threads=[1]")
MAY_CHANGE = (".json", ".md", ".html")
# JSON that ONNX Runtime or a tokenizer reads is part of the model.
MODEL_FILES = ("tokenizer.json", "tokenizer_config.json", "genai_config.json", "config.json")
LIBRARIES = (".so",)


def run_all(python: Path, home: Path) -> None:
    """Runs every recipe with the checkout that belongs to an interpreter; skips what is fresh."""
    root = Path(
        subprocess.run(
            [python, "-c", "import moe_export.errors as e; print(e.__file__)"],
            capture_output=True,
            text=True,
            check=True,
            cwd=home,
        ).stdout.strip()
    ).parents[1]
    for name, (recipe, overrides) in RECIPES.items():
        words = [f"--set={word}" for word in (*overrides, *CHEAP)]
        command = [python, "-m", "moe_export", "run", root / "recipes" / f"{recipe}.yaml"]
        subprocess.run(
            [*command, "--threads", "1", "--run", home / name, *words],
            check=True,
            cwd=home,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        )


def digests(home: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its relative path."""
    return {
        str(path.relative_to(home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix not in LIBRARIES
    }


def must_be_equal(name: str) -> bool:
    """Tells whether a file has to keep its bytes."""
    path = Path(name)
    return path.suffix not in MAY_CHANGE or path.name in MODEL_FILES


def main() -> int:
    """Runs both checkouts and prints what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="interpreter of the environment of the old checkout")
    parser.add_argument("new", type=Path, help="interpreter of the environment of the new checkout")
    parser.add_argument("--home", type=Path, required=True, help="folder for the runs")
    arguments = parser.parse_args()
    sides = []
    for side in ("old", "new"):
        home = (arguments.home / side).absolute()
        home.mkdir(parents=True, exist_ok=True)
        run_all(getattr(arguments, side).absolute(), home)
        sides.append(digests(home))
    old, new = sides
    either, both = sorted(old.keys() | new.keys()), sorted(old.keys() & new.keys())
    wrong = [name for name in either if must_be_equal(name) and old.get(name) != new.get(name)]
    equal = [name for name in both if must_be_equal(name) and old[name] == new[name]]
    changed = [name for name in both if not must_be_equal(name) and old[name] != new[name]]
    moved = sorted(set(either) - set(both) - set(wrong))
    print(f"{len(equal)} files of models, tensors and tokenizers have the same bytes")
    print("text that changed:", *(f"  {name}" for name in changed), sep="\n")
    print("text on one side only:", *(f"  {name}" for name in moved), sep="\n")
    for name in wrong:
        print(f"differs or is on one side only: {name}")
    return 1 if wrong or not equal else 0


if __name__ == "__main__":
    sys.exit(main())
