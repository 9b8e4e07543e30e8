"""Inner loops are found in assembly, with the codes that they multiply."""

from __future__ import annotations

import pytest

from tools.arm.cycles import codes_of, inner_loops, one_row

ASSEMBLY = """
by_countFormatE4E:
.L1:
	mov	x0, x1
.L2:
	ldr	q1, [x0]
	sdot	v0.4s, v1.16b, v2.4b[0]
	smlal2	v0.8h, v1.16b, v2.16b
	bne	.L2
	cbnz	x0, .L1
other:
	b	.L1
"""


def test_the_loop_inside_is_found_and_not_the_one_around_it() -> None:
    loops = inner_loops(ASSEMBLY)
    assert list(loops) == ["by_countFormatE4E"]
    (loop,) = loops["by_countFormatE4E"]
    assert [line.split()[0] for line in loop] == ["ldr", "sdot", "smlal2", "bne"]
    assert codes_of(one_row(loops, 4)) == 16 + 8
    with pytest.raises(RuntimeError, match="one row of format 3"):
        one_row(loops, 3)
