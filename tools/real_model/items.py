"""Items with a prompt, an answer and choices, made from tables of words and countries."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VAGUE = frozenset(
    {"state", "act", "action", "entity", "object", "group", "property", "attribute", "whole"}
)
"""Hypernyms that fit nearly every word."""

COMMON_WORDS = 1500
REGIONS = ("Africa", "America", "Asia", "Europe", "Oceania")


@dataclass(frozen=True)
class Item:
    """A prompt with its answer, which begins with a space, and the choices, the answer included."""

    prompt: str
    answer: str
    choices: tuple[str, ...]


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Writes items as lines of JSON."""
    lines = (json.dumps(asdict(item), ensure_ascii=False) for item in items)
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def countries(folder: Path) -> list[dict[str, Any]]:
    """Countries of more than a million people, by the file's name."""
    entries = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(folder.glob("*.json"))]
    return [
        entry
        for entry in entries
        if isinstance(entry, dict)
        and isinstance(entry.get("capital"), str)
        and entry["capital"]
        and entry.get("population", 0) > 1_000_000
        and "(" not in entry["name"]
    ]


def capitals(entries: Sequence[dict[str, Any]], draw: random.Random) -> list[Item]:
    """Capitals, among ten."""
    names = sorted({f" {entry['capital']}" for entry in entries})
    return [
        _item(f"The capital city of {entry['name']} is", f" {entry['capital']}", names, 10, draw)
        for entry in entries
    ]


def regions(entries: Sequence[dict[str, Any]], draw: random.Random) -> list[Item]:
    """Parts of the world, among five."""
    known = [entry for entry in entries if _region(entry) in REGIONS]
    names = [f" {region}" for region in REGIONS]
    return [
        _item(f"{entry['name']} is a country in", f" {_region(entry)}", names, len(names), draw)
        for entry in known
    ]


def _region(entry: dict[str, Any]) -> str:
    return str(entry.get("region", "")).replace("Americas", "America")


def hypernyms(pairs: Sequence[tuple[str, str]], draw: random.Random) -> list[Item]:
    """Kinds of things, among five."""
    names = sorted({f" {kind}" for _, kind in pairs})
    return [
        _item(
            f"{'An' if word[0] in 'aeiou' else 'A'} {word} is a kind of", f" {kind}", names, 5, draw
        )
        for word, kind in pairs
    ]


def sums(
    asked: Sequence[tuple[int, int]], pairs: Sequence[tuple[int, int]], draw: random.Random
) -> list[Item]:
    """Sums below ten after three solved ones, among nine.

    Args:
        asked: Pairs of digits that are asked for.
        pairs: Pairs of which three are solved before.
        draw: Source of the solved ones.
    """
    names = [str(n) for n in range(1, 10)]
    items = []
    for first, second in asked:
        shots = draw.sample([pair for pair in pairs if pair != (first, second)], 3)
        solved = " ".join(f"{a} + {b} = {a + b}." for a, b in shots)
        prompt = f"{solved} {first} + {second} = "
        items.append(Item(prompt, str(first + second), tuple(names)))
    return items


def copies(words: Sequence[str], count: int, draw: random.Random) -> list[Item]:
    """Lists of six words that are repeated; the fifth is asked for, among the six."""
    items = []
    for _ in range(count):
        chosen = draw.sample(words, 6)
        prompt = f"{', '.join(chosen)}. {', '.join(chosen[:4])},"
        items.append(Item(prompt, f" {chosen[4]}", tuple(f" {word}" for word in chosen)))
    return items


def _item(prompt: str, answer: str, names: Sequence[str], count: int, draw: random.Random) -> Item:
    others = [name for name in names if name != answer]
    choices = [answer, *draw.sample(others, count - 1)]
    draw.shuffle(choices)
    return Item(prompt, answer, tuple(choices))


class WordNet:
    """Nouns of WordNet 3.0, read from its `index.noun` and `data.noun`.

    Attributes:
        senses: Noun to the offsets of its synsets, the commonest first.
        tagged: Noun to the number of senses that occur in the tagged texts.
    """

    def __init__(self, folder: Path) -> None:
        self.senses: dict[str, list[str]] = {}
        self.tagged: dict[str, int] = {}
        for fields in _rows(folder / "index.noun"):
            pointers = int(fields[3])
            self.senses[fields[0]] = fields[6 + pointers :]
            self.tagged[fields[0]] = int(fields[5 + pointers])
        self._synsets = {row[0]: _synset(row) for row in _rows(folder / "data.noun")}

    def common_words(self) -> list[str]:
        """Nouns of one word and more than three letters, those with most tagged senses first."""
        words = [w for w in self.senses if self.tagged[w] and len(w) > 3 and w.isalpha()]
        return sorted(words, key=lambda word: (-self.tagged[word], word))

    def hypernym_pairs(self) -> list[tuple[str, str]]:
        """Nouns of at most two senses with the kind of thing that the first one is."""
        pairs = []
        for word in self.common_words():
            names, parents = self._synsets[self.senses[word][0]]
            if len(self.senses[word]) > 2 or names[0].lower() != word or not parents:
                continue
            kind = self._synsets[parents[0]][0][0]
            if kind.isalpha() and kind.lower() != word and kind not in VAGUE:
                pairs.append((word, kind))
        return pairs


def _rows(path: Path) -> Iterator[list[str]]:
    """Fields of each line, without the licence at the top, which is indented, and the gloss."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            yield line.split("|")[0].split()


def _synset(fields: list[str]) -> tuple[list[str], list[str]]:
    """Words of a synset and the offsets of its hypernyms."""
    count = int(fields[3], 16)
    words = fields[4 : 4 + 2 * count : 2]
    pointers = fields[5 + 2 * count :]
    numbers = range(int(fields[4 + 2 * count]))
    return words, [pointers[4 * n + 1] for n in numbers if pointers[4 * n] == "@"]
