"""Counts are of the products' own instructions: their addresses are found among all symbols."""

from __future__ import annotations

import subprocess

from tools.arm.count import kernels_only
from tools.arm.cycles import NATIVE
from tools.arm.programs import HERE

SYMBOLS = """\
0000000000400100 0000000000000010 T main
0000000000400200 0000000000000010 t _ZN16QuantizedProduct3runEv
0000000000400400 0000000000000020 t _ZN8by_countI12FloatProductEv
0000000000400180 0000000000000010 t _ZN17quantized_productEv
                 U someProduct
"""


def test_the_range_reaches_from_the_first_product_to_the_end_of_the_last() -> None:
    assert kernels_only(SYMBOLS) == ["-dfilter", "0x400180..0x400420"]
    assert kernels_only("0000000000400100 0000000000000010 T main\n") == []


def test_the_program_that_is_counted_compiles_with_the_kernels_of_today() -> None:
    options = ["-std=c++17", "-fsyntax-only", "-Wall", "-Werror", f"-I{NATIVE}"]
    subprocess.run(["c++", *options, str(HERE / "count.cc")], check=True)
