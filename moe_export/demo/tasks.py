"""Documents of the demo model, of five kinds, each with a part held out from training.

A document is a prompt and its answer. A SHA-256 hash of the item decides if it is held out, so the
split is the same for every seed, machine and Python version:

===========  =====================================================  ================================
kind         a document                                             held out
===========  =====================================================  ================================
arithmetic   word problem of one to three steps, with its working   10 % of the (a, +/-, b) pairs
sums         a bare sum such as ``12+30=``                          the same pairs
facts        a country or an element, asked in one of five wordings  one wording of every fact
strings      copy, reverse or sort a few letters                    10 % of the letter sequences
text         a paragraph of the Python documentation                the excerpt's test paragraphs
===========  =====================================================  ================================

Invariant: training and test documents are disjoint in exactly these units. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from moe_export.demo.wordings import PEOPLE, QUESTIONS, STEPS, THINGS, WORDINGS
from moe_export.errors import RecipeError

KINDS: tuple[str, ...] = ("arithmetic", "sums", "facts", "strings", "text")

# Test generators give up after this many draws in a row without a new document.
_MAX_REPEATS = 2000


@dataclass(frozen=True)
class Document:
    """Prompt and the answer that should follow it; the answer ends with a newline.

    Attributes:
        prompt: Text before the answer; empty for a text alone.
        answer: Text that should follow.
        wrong_choices: Texts that the answer is held against; no embedded task has any.
    """

    prompt: str
    answer: str
    wrong_choices: tuple[str, ...] = ()


def training_documents(kind: str, count: int, seed: int) -> list[Document]:
    """Documents of one kind from the training side of the split.

    Facts and text are dealt from a shuffled pool, so that none repeats before all were dealt. The
    other kinds are drawn at random and may repeat.

    Args:
        kind: Kind of the documents, one of `KINDS`.
        count: Number of documents, at least 1.
        seed: Seed of the draw; equal seeds give equal documents.

    Raises:
        RecipeError: The kind is unknown or the count is not positive.
    """
    _check_request(kind, count)
    rng = random.Random(f"training {kind} {seed}")
    if kind in _POOLS:
        dealt = _deal_forever(_POOLS[kind](held_out=False), rng)
        return [next(dealt) for _ in range(count)]
    return [_GENERATORS[kind](rng, held_out=False) for _ in range(count)]


def test_items(kind: str, count: int, seed: int = 1234) -> list[Document]:  # noqa: PT028
    """Distinct documents of one kind from the held-out side of the split.

    Args:
        kind: Kind of the documents, one of `KINDS`.
        count: Number of documents, at least 1.
        seed: Seed of the draw; equal seeds give equal documents.

    Raises:
        RecipeError: The kind is unknown, the count is not positive, or the kind has fewer held-out
            documents.
    """
    _check_request(kind, count)
    rng = random.Random(f"test {kind} {seed}")
    if kind in _POOLS:
        pool = _POOLS[kind](held_out=True)
        _check_enough(kind, count, len(pool))
        return rng.sample(pool, count)
    items: dict[Document, None] = {}
    repeats = 0
    while len(items) < count:
        known = len(items)
        items[_GENERATORS[kind](rng, held_out=True)] = None
        repeats = 0 if len(items) > known else repeats + 1
        if repeats == _MAX_REPEATS:
            _check_enough(kind, count, len(items))
    return list(items)


def is_held_out_pair(a: int, operator: str, b: int) -> bool:
    """True if the sum ``a operator b`` is held out from training (10 % of + and -, no *)."""
    return operator in "+-" and _bucket("pair", a, operator, b) % 10 == 0


def is_held_out_string(skill: str, letters: str) -> bool:
    """True if a letter sequence is held out from training for one string skill (10 %)."""
    return _bucket("string", skill, letters) % 10 == 0


def held_out_wording(relation: str, subject: str) -> int:
    """Index, 0 to 4, of the wording of a fact that is held out from training."""
    return _bucket("wording", relation, subject) % 5


def _word_problem(rng: random.Random, *, held_out: bool) -> Document:
    while True:
        who, other = rng.sample(PEOPLE, 2)
        things = rng.choice(THINGS)
        start = value = rng.randint(2, 60)
        events: list[str] = []
        working: list[str] = []
        unseen_steps = 0
        for _ in range(rng.choice((1, 1, 2, 2, 2, 3))):
            operator = _pick_operator(rng, value)
            if operator == "*":
                b = rng.randint(2, 9)
            else:
                b = rng.randint(2, 60 if operator == "+" else min(value - 1, 60))
            result = _apply(value, operator, b)
            unseen_steps += is_held_out_pair(value, operator, b)
            events.append(rng.choice(STEPS[operator]).format(b=b, other=other))
            working.append(f"{value}{operator}{b}={result}.")
            value = result
        if (unseen_steps > 0) == held_out:
            break
    story = " and ".join([", ".join(events[:-1]), events[-1]] if len(events) > 1 else events)
    question = rng.choice(QUESTIONS).format(things=things, who=who)
    return Document(
        f"Q: {who} has {start} {things}. {who} {story}. {question}\nA:",
        f" {' '.join(working)} #### {value}\n",
    )


def _pick_operator(rng: random.Random, value: int) -> str:
    operator = rng.choice("+-*" if value <= 20 else "+-")
    return "+" if operator == "-" and value < 4 else operator


def _apply(a: int, operator: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[operator]


def _sum(rng: random.Random, *, held_out: bool) -> Document:
    while True:
        operator = rng.choice("++--*")
        a = rng.randint(2, 20 if operator == "*" else 120)
        if operator == "*":
            b = rng.randint(2, 9)
        else:
            b = rng.randint(2, 60) if operator == "+" else rng.randint(1, min(a, 60))
        if is_held_out_pair(a, operator, b) == held_out:
            return Document(f"{a}{operator}{b}=", f"{_apply(a, operator, b)}.\n")


def _string(rng: random.Random, *, held_out: bool) -> Document:
    while True:
        skill = rng.choice(("reverse", "sort", "copy"))
        letters = rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7))
        if is_held_out_string(skill, "".join(letters)) == held_out:
            break
    answer = {"reverse": letters[::-1], "sort": sorted(letters), "copy": letters}[skill]
    return Document(f"{skill}: {' '.join(letters)} ->", f" {' '.join(answer)}.\n")


@cache
def _facts(*, held_out: bool) -> list[Document]:
    documents = []
    for relation, answers in _load("facts.json").items():
        for subject, answer in answers.items():
            unseen = held_out_wording(relation, subject)
            documents += [
                Document(wording.format(s=subject), f" {answer}.\n")
                for index, wording in enumerate(WORDINGS[relation])
                if (index == unseen) == held_out
            ]
    return documents


@cache
def _text(*, held_out: bool) -> list[Document]:
    return [Document("", paragraph + "\n") for paragraph in text_paragraphs(held_out=held_out)]


def text_paragraphs(*, held_out: bool) -> list[str]:
    """Shipped paragraphs of one side of the split, without their final newline."""
    paragraphs: list[str] = _load("text.json")["test" if held_out else "training"]
    return paragraphs


_GENERATORS: dict[str, Callable[..., Document]] = {
    "arithmetic": _word_problem,
    "sums": _sum,
    "strings": _string,
}
_POOLS: dict[str, Callable[..., list[Document]]] = {"facts": _facts, "text": _text}


def _deal_forever(pool: list[Document], rng: random.Random) -> Iterator[Document]:
    while True:
        yield from rng.sample(pool, len(pool))


@cache
def _load(name: str) -> Any:
    return json.loads((files("moe_export.demo") / "data" / name).read_text(encoding="utf-8"))


def _bucket(*parts: object) -> int:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def _check_request(kind: str, count: int) -> None:
    if kind not in KINDS:
        raise RecipeError(f"demo task: unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
    if count < 1:
        raise RecipeError(f"demo task {kind}: count is {count}; ask for at least 1 document")


def _check_enough(kind: str, count: int, available: int) -> None:
    if available < count:
        raise RecipeError(
            f"demo task {kind}: {count} held-out documents asked for, only {available} found; "
            f"ask for at most {available}"
        )
