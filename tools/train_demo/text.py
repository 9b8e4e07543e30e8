"""Text for the demo model: paragraphs of the Python standard library's documentation (PSF-2.0).

The full set is read from the running Python, so it differs a little between Python versions; the
package ships an excerpt, `moe_export/demo/data/text.json`, which also fixes the test paragraphs.

    python -m tools.train_demo.text OUT.json      write a new excerpt
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data import topics

from moe_export.demo import tasks

_CHARACTERS = range(80, 501)  # shorter is a heading, longer does not fit beside other documents
_MIN_LETTERS = 0.88  # fraction of letters and spaces: keeps prose, drops tables and code
_SKIPPED_PACKAGES = {"site-packages", "dist-packages", "test", "idlelib", "lib2to3"}
_EXCERPT_CHARACTERS = {"test": 32_000, "training": 84_000}


@cache
def training_paragraphs() -> tuple[str, ...]:
    """All paragraphs to train on: the shipped excerpt and what the running Python adds to it."""
    collected = {text for text in _collect() if not _is_held_out(text)}
    return tuple(sorted(collected | set(tasks.text_paragraphs(held_out=False))))


def write_excerpt(path: Path, seed: int = 0) -> None:
    """Write the excerpt that the package ships: random paragraphs of both sides of the split."""
    sides: dict[str, list[str]] = {"training": [], "test": []}
    for text in sorted(_collect()):
        sides["test" if _is_held_out(text) else "training"].append(text)
    rng = random.Random(seed)
    excerpt = {side: _up_to(texts, _EXCERPT_CHARACTERS[side], rng) for side, texts in sides.items()}
    path.write_text(json.dumps(excerpt, indent=0) + "\n", encoding="utf-8")


def _up_to(texts: list[str], characters: int, rng: random.Random) -> list[str]:
    chosen = []
    for text in rng.sample(texts, len(texts)):
        characters -= len(text)
        if characters < 0:
            break
        chosen.append(text)
    return chosen


def _is_held_out(text: str) -> bool:
    # Copied docstrings differ in their later words, so the split looks at the first letters only.
    start = re.sub(r"[^a-z]", "", text.lower())[:32]
    return hashlib.sha256(f"text|{start}".encode()).digest()[0] % 20 == 0


def _collect() -> set[str]:
    paragraphs = set()
    for documentation in _documentation():
        for block in re.split(r"\n\s*\n", documentation):
            text = " ".join(block.split())
            if len(text) not in _CHARACTERS or not text.isascii():
                continue
            if sum(c.isalpha() or c == " " for c in text) > _MIN_LETTERS * len(text):
                paragraphs.add(text)
    return paragraphs


def _documentation() -> Iterator[str]:
    yield from topics.topics.values()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in [*library.glob("*.py"), *library.glob("[a-z]*/*.py")]:
        if path.relative_to(library).parts[0] in _SKIPPED_PACKAGES:
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                yield ast.get_docstring(node) or ""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the text excerpt of the demo data.")
    parser.add_argument("out", type=Path)
    write_excerpt(parser.parse_args().out)
