"""The table of formats, held against the names, numbers and bits of the native library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import moe_export.op
from moe_export.errors import RecipeError
from moe_export.formats import GRIDS, TABLE, known_to
from moe_export.formats.facts import EXECUTORS
from moe_export.op import spec
from moe_export.op.packed import PackedLayout
from moe_export.quantization import Quantization

NATIVE = Path(moe_export.op.__file__).parent / "native"
ROW = re.compile(r'\{"(\w+)",\s*k(\w+),')
"""A row of the table in C++: a format's name and the number of its codes' or floats' type."""


def test_the_native_library_has_the_same_formats_at_the_same_places() -> None:
    sources = [
        path.read_text() for path in sorted(NATIVE.rglob("*")) if path.suffix in (".cc", ".h")
    ]
    rows = [row for text in sources for row in ROW.findall(text) if row[0] in TABLE]
    types = {
        name: str(GRIDS[name].code_dtype) if name in GRIDS else name for name in known_to("native")
    }
    assert [(name, kind.lower()) for name, kind in rows] == list(types.items())
    enums = [e for text in sources for e in re.findall(r"enum class Format \{([^}]*)\}", text)]
    assert [[word.strip(" k\n").lower() for word in e.split(",")] for e in enums] == [
        list(TABLE)[: len(types)]
    ]


def test_bits_are_those_of_grid_storage_and_panel() -> None:
    bits = {
        name: (facts.grid.code_bits if facts.grid else None, facts.storage_bits, facts.panel_bits)
        for name, facts in TABLE.items()
    }
    assert bits == {
        "float32": (None, 32, 32),
        "float16": (None, 16, 16),
        "bfloat16": (None, 16, 16),
        "int8": (8, 8, 8),
        "int4": (4, 4, 4),
        "uint8": (8, 8, 8),
        "uint4": (4, 4, 4),
        "nf4": (4, 4, 4),
    }


@pytest.mark.parametrize("name", known_to("packed"))
def test_a_panel_has_the_bits_of_the_table(name: str) -> None:
    facts = TABLE[name]
    layout = PackedLayout(name, 32 if facts.is_quantized else 0, 64, (64,))
    values = 3 * 64 * 64
    assert 8 * (layout.expert_bytes(64) - layout.scale_bytes(64)) == values * (
        facts.panel_bits or 0
    )


def test_an_executor_that_does_not_know_a_format_refuses_it() -> None:
    assert tuple(TABLE) == spec.FORMATS
    known = {name: set(EXECUTORS) - facts.executors for name, facts in TABLE.items()}
    assert {name for name, absent in known.items() if not absent} == set(spec.QUANTIZED_FORMATS)
    with pytest.raises(
        RecipeError, match="format float32 is not known to the native library's rounding"
    ):
        TABLE["float32"].require("rounding")


def test_an_unknown_word_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="format 'int5' is unknown; choose one of float, float32"):
        Quantization(("float", "int5"))
    with pytest.raises(RecipeError, match="format 'int5' is unknown"):
        Quantization(dense="int5")
