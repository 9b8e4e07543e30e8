"""Inner loops are found in assembly, with the codes that they multiply."""

from __future__ import annotations

import pytest

from tools.arm.cycles import inner_loops, loop_of, products_in

ASSEMBLY = """
_Z8by_countI7ProductIFormatE4EELi1ELi6EEvPKh:
.L1:
	mov	x0, x1
.L2:
	ldr	q1, [x0]
	sdot	v0.4s, v1.16b, v2.4b[0]
	smlal2	v0.8h, v1.16b, v2.16b
	bne	.L2
	cbnz	x0, .L1
_Z8by_countI7ProductIFormatE4EELi2ELi6EEvPKh:
.L3:
	sdot	v0.4s, v1.16b, v2.4b[0]
	bne	.L3
other:
	b	.L1
"""

HALVES = """
_ZN12FloatProductINS0_6HalvesEE3runILi6ELi1EEEvPKh:
.L1:
	fmlal	v0.4s, v1.4h, v2.h[0]
	fmlal2	v3.4s, v1.4h, v2.h[0]
	bne	.L1
.L2:
	fmlal	v0.4s, v1.4h, v2.h[0]
	bne	.L2
"""


def test_the_loop_inside_is_found_and_not_those_around_it_or_of_two_sides() -> None:
    loops = inner_loops(ASSEMBLY)
    one, two = (f"_Z8by_countI7ProductIFormatE4EELi{sides}ELi6EEvPKh" for sides in (1, 2))
    assert list(loops) == [one, two]
    (loop,) = loops[one]
    assert [line.split()[0] for line in loop] == ["ldr", "sdot", "smlal2", "bne"]
    assert products_in(loop_of(loops, "int4", 1)) == 16 + 8
    with pytest.raises(RuntimeError, match="no loop multiplies 1 rows by weights in int8"):
        loop_of(loops, "int8", 1)


def test_the_loop_of_the_whole_depth_is_taken_and_not_that_of_its_end() -> None:
    loops = inner_loops(HALVES)
    assert products_in(loop_of(loops, "float16", 6)) == 8
    with pytest.raises(RuntimeError, match="no loop multiplies 1 rows by weights in float16"):
        loop_of(loops, "float16", 1)
