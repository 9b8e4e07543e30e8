"""Tests of windows of text files, and of their cost in memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from moe_export.demo import checkpoint_dir
from moe_export.documents import windows as drawing
from moe_export.documents.sources import Drawn, draw
from moe_export.errors import CalibrationError
from moe_export.recipe import Source
from moe_export.recipe.load import parse_recipe
from moe_export.runner.estimate import estimate
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.text_models import as_text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("windows"))


def drawn(path: Path, model: Path, count: int, length: int, seed: int = 0) -> Drawn:
    return draw(Source(text=str(path)), model, count, length, seed, "train")


def numbered(lines: int) -> str:
    return "".join(f"<{number:07}>\n" for number in range(lines))


def test_windows_of_a_large_file_are_pieces_of_it_without_overlap(
    model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    text = numbered(20_000)
    path.write_text(text)
    sequences = drawn(path, model, 16, 100).sequences
    places = [text.index(as_text(sequence.tokens)) for sequence in sequences]
    assert all(place % 10 == 0 for place in places), "a window begins at a line"
    assert all(b - a >= 100 for a, b in pairwise(places))
    assert max(places) > 0.9 * len(text)
    assert drawn(path, model, 16, 100).sequences == sequences
    assert drawn(path, model, 16, 100, seed=1).sequences != sequences


def test_a_small_file_gives_every_window_that_its_tokens_make(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "PIECE_BYTES", 37)
    path = tmp_path / "text.txt"
    text = "é and 中 " * 40 + "\n\n" + numbered(20)
    path.write_text(text)
    tokens = len(text.encode())
    sequences = drawn(path, model, tokens // 16, 16).sequences
    pieces = sorted((as_text(sequence.tokens) for sequence in sequences), key=len)
    assert sum(len(sequence.tokens) for sequence in sequences) == tokens // 16 * 16
    assert len(set(pieces)) > 5
    with pytest.raises(CalibrationError, match=f"its {tokens} tokens make {tokens // 16}"):
        drawn(path, model, tokens // 16 + 1, 16)


def test_parts_with_few_tokens_are_read_further_and_not_the_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(drawing, "_from_all")
    path = tmp_path / "text.txt"
    model = tiny_checkpoint(tmp_path / "model")
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    tokenizer.save(str(model / "tokenizer.json"))
    path.write_text(("." * 200 + "ab\n") * 3000)
    sequences = drawn(path, model, 2, 100).sequences
    assert [sequence.tokens for sequence in sequences] == [[0, 1] * 50] * 2


def test_byte_order_mark_and_line_ends_of_windows_are_read(model: Path, tmp_path: Path) -> None:
    unix, windows = tmp_path / "unix.txt", tmp_path / "windows.txt"
    unix.write_bytes(numbered(50).encode())
    windows.write_bytes(b"\xef\xbb\xbf" + numbered(50).replace("\n", "\r\n").encode())
    assert drawn(windows, model, 30, 16).sequences == drawn(unix, model, 30, 16).sequences


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PAR1", "is compressed or a table, expected plain text"),
        (b"\x1f\x8b", "is compressed or a table, expected plain text"),
        ("text".encode("utf-16"), "is text in UTF-16"),
        (b"abc \xff" * 9, "cannot be read as UTF-8 text .byte 0xff"),
        (b"abc \xff" * 99_999, "cannot be read as UTF-8 text .byte 0xff"),
        ("some text".encode("utf-16-le") * 99, "UTF-16 without a byte order mark"),
        (b"some text " * 99 + b"\0", "is no text, as it holds zero bytes"),
        (b'{"text": "some text"}\n' * 9, "holds rows of JSON.*give it as jsonl:"),
        (b'[\n {"text": "some text"}]', "holds rows of JSON.*give it as jsonl:"),
        (b" \n\t" * 99, "its text is white space alone"),
        (b"%PDF-1.7", "is a PDF; extract its text with `pdftotext`"),
    ],
)
def test_a_file_that_is_no_text_is_named(
    model: Path, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match=sentence):
        drawn(path, model, 1, 8)


@pytest.mark.parametrize(("key", "line"), [("text", "{}\n\n"), ("jsonl", '{{"text": "{}"}}\n')])
def test_a_large_corpus_takes_no_more_memory_than_dry_run_says(
    tmp_path: Path, key: str, line: str
) -> None:
    path = tmp_path / "corpus"
    words = "the quick brown fox jumps over the lazy dog while it rains in Norway. " * 10
    block = "".join(line.format(f"{number} {words}") for number in range(1000))
    path.write_text(block * 45)  # 32 MB, of which the tokenizer would make 8 GB
    source = {key: str(path)}
    done = subprocess.run(
        [sys.executable, "-c", DRAW.format(source=source)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    sections = {
        "model": {"source": "demo"},
        "calibrate": {"sources": [source], "sequences": 32, "sequence_length": 512},
        "plan": {"keep": 0.5},
    }
    predicted = estimate(parse_recipe(sections, ()), checkpoint_dir())[0]
    assert predicted.stage == "calibrate"
    peak_bytes = int(done.stdout) << 10
    assert peak_bytes <= predicted.peak_bytes <= 300 << 20


DRAW = """
import re
from pathlib import Path
from moe_export.demo import checkpoint_dir
from moe_export.documents.sources import draw, outside_files
from moe_export.recipe import Source
source = Source(**{source})
outside_files([source])
assert len(draw(source, checkpoint_dir(), 32, 512, 0, "train").sequences) == 32
print(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_long_rows_are_not_held_together(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = '{"text": "' + "a long book " * (1 << 16) + '"}\n'
    path.write_text(row * 64)
    tracemalloc.start()
    drawn = draw(Source(jsonl=str(path)), model, 64, 16, 0, "train")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert drawn.truncated == 64
    assert peak_bytes < 16 * len(row)
