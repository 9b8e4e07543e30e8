"""Calibration and held-out data: three kinds of text and five kinds of items."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tools.real_model.items import (
    COMMON_WORDS,
    Item,
    WordNet,
    capitals,
    copies,
    countries,
    hypernyms,
    regions,
    sums,
    write_items,
)
from tools.real_model.packages import COUNTRIES, DATA, ESSAYS, MANUAL, NOVELS, WORDS, unpacked
from tools.real_model.texts import html_paragraphs, novel_paragraphs, r_string_vectors

SEED = 7
ESSAY_SECTIONS = ("ABCDEFGH", "IJ")
"""Sections of the essays for calibration and for scoring."""

NOVEL_NUMBERS = ((0, 1, 4, 5), (2, 3))
"""Novels for calibration and for scoring, in the order of the package."""

HYPERNYMS = 600
COPIES = 160
SUMS = 4

ValueT = TypeVar("ValueT")
Halves = tuple[Sequence[ValueT], Sequence[ValueT]]
"""Calibration part and scored part."""


def write_data(out: Path, packages: Path) -> None:
    """Writes NAME_train and NAME_test of every kind, and `LICENSES.md`.

    Args:
        out: Folder of the files; is created.
        packages: Folder that keeps the packages.

    Raises:
        DependencyError: A package cannot be had.
    """
    folders = {package: unpacked(package, packages) for package in DATA}
    out.mkdir(parents=True, exist_ok=True)
    for name, halves in _texts(folders[ESSAYS], folders[MANUAL], folders[NOVELS]).items():
        for part, paragraphs in zip(("train", "test"), halves, strict=True):
            (out / f"{name}_{part}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    for name, items in _items(folders[COUNTRIES], folders[WORDS]).items():
        for part, half in zip(("train", "test"), items, strict=True):
            write_items(out / f"{name}_{part}.jsonl", half)
    (out / "LICENSES.md").write_text(licences(), encoding="utf-8")


def licences() -> str:
    """Markdown with the origin and licence of the data."""
    lines = ["# Origin of these files", "", "| used for | package | licence |", "|---|---|---|"]
    rows = [f"| {p.used_for} | {p.name} ({p.registry}) | {p.licence} |" for p in DATA]
    return "\n".join([*lines, *rows, ""])


def _texts(essays: Path, manual: Path, novels: Path) -> dict[str, Halves[str]]:
    pages = essays / "usr/share/doc/anarchism/html"
    train, test = (
        html_paragraphs(
            page for letter in part for page in sorted(pages.glob(f"sec{letter}*.html"))
        )
        for part in ESSAY_SECTIONS
    )
    repeated = set(train)
    handbook = html_paragraphs(
        sorted((manual / "usr/share/doc/debian-handbook/html/en-US").glob("*.html"))
    )
    database = novels / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    books = [novel_paragraphs(lines[1:]) for lines in r_string_vectors(database.read_bytes())]
    halves = [[p for number in part for p in books[number]] for part in NOVEL_NUMBERS]
    return {
        "prose": (train, [p for p in test if p not in repeated]),
        "manual": divided(handbook, 3 * len(handbook) // 4),
        "novel": (halves[0], halves[1]),
    }


def _items(countries_folder: Path, words_folder: Path) -> dict[str, Halves[Item]]:
    draw = random.Random(SEED)
    entries = countries(countries_folder / "countryinfo/data")
    draw.shuffle(entries)
    wordnet = WordNet(words_folder / "usr/share/wordnet")
    pairs = wordnet.hypernym_pairs()[: 2 * HYPERNYMS]
    kinds = {
        "capitals": capitals(entries, draw),
        "regions": regions(entries, draw),
        "hypernyms": hypernyms(draw.sample(pairs, HYPERNYMS), draw),
        "copies": copies(wordnet.common_words()[:COMMON_WORDS], COPIES, draw),
    }
    halves = {name: divided(items, len(items) // 2) for name, items in kinds.items()}
    return halves | {"sums": sums_by_half(draw)}


def sums_by_half(draw: random.Random) -> Halves[Item]:
    """Sums of pairs that the other half neither asks for nor solves, each asked `SUMS` times."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10 - a)]
    draw.shuffle(pairs)
    train, test = (
        [item for _ in range(SUMS) for item in sums(half, half, draw)]
        for half in divided(pairs, len(pairs) // 2)
    )
    return train, test


def divided(values: Sequence[ValueT], first: int) -> Halves[ValueT]:
    """Divides values after the first ones.

    >>> divided([1, 2, 3], 2)
    ([1, 2], [3])
    """
    return values[:first], values[first:]
