"""Compares the files that two checkouts of moe-export write from the same recipes, byte by byte.

`python -m tools.same_bytes OLD NEW --home DIR`, where OLD and NEW are the interpreters of two
environments, each with one checkout installed. Each runs `demo_50pct`, `demo_50pct_int4` and a
packed export with one thread in a folder of its own below DIR. Model files, tensor files and
tokenizer files must be equal; text that may change (JSON, Markdown, HTML) is listed. An ONNX graph
names the version of moe-export that wrote it; this one field may differ.

Exits with 1 if a file that must be equal differs or exists on one side only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx

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
        str(path.relative_to(home)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(home.rglob("*"))
        if path.is_file() and path.suffix not in LIBRARIES
    }


def content(path: Path) -> bytes:
    """Bytes of a file; those of an ONNX graph without the version of moe-export that wrote it."""
    if path.suffix != ".onnx":
        return path.read_bytes()
    model = onnx.load(path, load_external_data=False)
    model.producer_version = ""
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def must_be_equal(name: str) -> bool:
    """True if a file has to keep its bytes."""
    path = Path(name)
    return path.suffix not in MAY_CHANGE or path.name in MODEL_FILES


@dataclass(frozen=True)
class Comparison:
    """Files of two sides, by relative path.

    Attributes:
        equal: Files that must be equal and are.
        wrong: Files that must be equal and differ, or exist on one side only.
        changed: Text that differs.
        moved: Text that exists on one side only.
    """

    equal: tuple[str, ...]
    wrong: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """True if there are files that must be equal and all of them are."""
        return bool(self.equal) and not self.wrong


def compare(old: dict[str, str], new: dict[str, str]) -> Comparison:
    """Compares two sides.

    Args:
        old: Relative path of each file to its digest, see `digests`.
        new: The other side.
    """
    kinds: dict[str, list[str]] = {"equal": [], "wrong": [], "changed": [], "moved": []}
    for name in sorted(old.keys() | new.keys()):
        same, both = old.get(name) == new.get(name), name in old and name in new
        if must_be_equal(name):
            kinds["equal" if same else "wrong"].append(name)
        elif not same:
            kinds["changed" if both else "moved"].append(name)
    return Comparison(**{kind: tuple(names) for kind, names in kinds.items()})


def main() -> int:
    """Runs both checkouts and prints the differences; returns the exit code."""
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
    compared = compare(*sides)
    print(f"{len(compared.equal)} files of models, tensors and tokenizers have the same bytes")
    print("text that changed:", *(f"  {name}" for name in compared.changed), sep="\n")
    print("text on one side only:", *(f"  {name}" for name in compared.moved), sep="\n")
    for name in compared.wrong:
        print(f"differs or is on one side only: {name}")
    return 0 if compared.holds else 1


if __name__ == "__main__":
    sys.exit(main())
