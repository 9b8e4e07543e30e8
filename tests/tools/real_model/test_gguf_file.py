"""Values and refusals of the reader of GGUF files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from moe_export.errors import CheckpointError
from tests.helpers.gguf import float32, write_gguf
from tools.real_model.gguf_file import GgufFile


def test_blocks_are_decoded_as_by_hand(tmp_path: Path) -> None:
    nibbles = bytes([0x21] + [0] * 14 + [0xF0])
    q4_1 = struct.pack("<ee", 0.5, -1.0) + nibbles
    q8_0 = struct.pack("<e32b", 0.25, *range(-16, 16))
    half = np.arange(3, dtype="<f2").tobytes()
    path = tmp_path / "some.gguf"
    write_gguf(
        path,
        {"words": ["a", "bc"], "n": 3, "x": 0.5},
        {
            "odd": ((3,), 1, half),
            "q4": ((1, 32), 3, q4_1),
            "q8": ((2, 16), 8, q8_0),
            "f": float32(np.arange(6.0).reshape(2, 3)),
        },
    )
    file = GgufFile(path)
    assert file.facts == {"words": ["a", "bc"], "n": 3, "x": 0.5}
    q4_values = file.read("q4")[0]
    # Low nibbles are the first half of a block, high nibbles the second.
    assert [q4_values[i] for i in (0, 1, 15, 16, 31)] == [-0.5, -1.0, -1.0, 0.0, 6.5]
    assert file.read("q8").tolist() == (0.25 * np.arange(-16, 16).reshape(2, 16)).tolist()
    assert file.read("odd").tolist() == [0, 1, 2]
    assert file.read("f").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: b"GGML" + content[4:], "begins with b'GGML'"),
        (lambda content: content[:4] + b"\x01" + content[5:], "has version 1"),
        (lambda content: content[:60], "cut short or damaged"),
        (lambda content: content[:-17], "ends within tensor f"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change, sentence: str) -> None:
    path = tmp_path / "some.gguf"
    write_gguf(path, {"a": "b"}, {"f": float32(np.ones(4))})
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CheckpointError, match=sentence):
        GgufFile(path).read("f")


def test_an_unknown_type_is_refused_with_those_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    write_gguf(path, {}, {"f": ((4,), 14, b"1234")})
    with pytest.raises(CheckpointError, match=r"f is of type 14; the types \[0, 1, 3, 8, 30\]"):
        GgufFile(path)
