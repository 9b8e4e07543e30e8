"""Inner loops are found in assembly, with the codes that they multiply."""

from __future__ import annotations

import pytest

from tools.arm.cycles import codes_of, inner_loops, one_row

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


def test_the_loop_inside_is_found_and_not_those_around_it_or_of_two_sides() -> None:
    loops = inner_loops(ASSEMBLY)
    one, two = (f"_Z8by_countI7ProductIFormatE4EELi{sides}ELi6EEvPKh" for sides in (1, 2))
    assert list(loops) == [one, two]
    (loop,) = loops[one]
    assert [line.split()[0] for line in loop] == ["ldr", "sdot", "smlal2", "bne"]
    assert codes_of(one_row(loops, 4)) == 16 + 8
    with pytest.raises(RuntimeError, match="one row of format 3"):
        one_row(loops, 3)
