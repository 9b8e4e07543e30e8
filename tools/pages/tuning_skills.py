"""Two skills that the demo models lack, as files of prompts and answers.

`shift` moves every letter by one; `inverse` asks for the country of a capital, in three wordings. A
tenth of the letter sequences and one wording of each capital, by hash, are held out.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from moe_export.demo.tasks import Document

SKILLS = ("shift", "inverse")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDINGS = (
    "Q: Which country has the capital {s}?\nA:",
    "{s} is the capital of",
    "Country with capital {s}:",
)

TRAINING_DOCUMENTS = {"shift": 3000, "inverse": 3000}
TEST_DOCUMENTS = {"shift": 150, "inverse": 177}


def write_skills(folder: Path) -> None:
    """Writes `NAME_train.jsonl` and `NAME_test.jsonl` of each skill; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SKILLS:
        for part, counts in (("train", TRAINING_DOCUMENTS), ("test", TEST_DOCUMENTS)):
            documents = documents_of(name, counts[name], held_out=part == "test")
            (folder / f"{name}_{part}.jsonl").write_text(_lines(documents), encoding="utf-8")


def documents_of(name: str, count: int, *, held_out: bool) -> list[Document]:
    """Documents of a skill from one side of its split.

    Training documents of `inverse` repeat once all were dealt.

    Args:
        name: `shift` or `inverse`.
        count: Number of documents.
        held_out: True for the side that is never trained on.
    """
    rng = random.Random(f"{name} {held_out}")
    if name == "shift":
        return _shifts(rng, count, held_out=held_out)
    pool = _inverses(held_out=held_out)
    dealt: list[Document] = []
    while len(dealt) < count:
        dealt += rng.sample(pool, len(pool))
    return dealt[:count]


def _shifts(rng: random.Random, count: int, *, held_out: bool) -> list[Document]:
    documents: dict[Document, None] = {}
    while len(documents) < count:
        letters = rng.choices(LETTERS, k=rng.randint(3, 7))
        if (_bucket("shift", *letters) % 10 == 0) == held_out:
            shifted = (LETTERS[(LETTERS.index(letter) + 1) % 26] for letter in letters)
            documents[Document(f"shift: {' '.join(letters)} ->", f" {' '.join(shifted)}.\n")] = None
    return list(documents)


def _inverses(*, held_out: bool) -> list[Document]:
    facts = json.loads((files("moe_export.demo") / "data" / "facts.json").read_text("utf-8"))
    # One capital has two countries, and so no one answer.
    countries = Counter(facts["capital"].values())
    return [
        Document(wording.format(s=capital), f" {country}.\n")
        for country, capital in facts["capital"].items()
        for number, wording in enumerate(WORDINGS)
        if countries[capital] == 1
        and (number == _bucket("inverse", country) % len(WORDINGS)) == held_out
    ]


def _lines(documents: Iterable[Document]) -> str:
    rows = ({"prompt": each.prompt, "answer": each.answer} for each in documents)
    return "".join(json.dumps(row) + "\n" for row in rows)


def _bucket(*parts: str) -> int:
    digest = hashlib.sha256("|".join(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big")
