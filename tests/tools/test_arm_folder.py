"""A folder that runs in emulation is refused if it computes, or runs, something else than here."""

from __future__ import annotations

from typing import Any

import pytest

from tools.arm.folder import TOLERANCE, difference

HERE: dict[str, Any] = {"text": "Oslo\n", "logits": [[1.0, 2.0]]}
THERE: dict[str, Any] = {
    "library": "libmoe_export_ops-linux_aarch64.so",
    "kernel": "dotprod: the fastest that this processor has",
    "text": "Oslo\n",
    "logits": [[1.0, 2.0 + TOLERANCE / 2]],
    "installed_equal": True,
}


def test_the_largest_difference_of_logits_is_found() -> None:
    assert difference(HERE, THERE, "cortex-a76") == pytest.approx(TOLERANCE / 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"library": "libmoe_export_ops-linux_x86_64.so"}, "library is 'libmoe_export_ops-linux"),
        ({"kernel": "portable: slow"}, "kernel is 'portable', expected 'dotprod'"),
        ({"text": "Bergen\n"}, r"text is 'Bergen\\n', expected 'Oslo\\n'"),
        ({"logits": [[1.0, 2.0 + 2 * TOLERANCE]]}, r"closeness of logits .*differ by 0\.0002"),
        ({"installed_equal": False}, "installed library's equality is False"),
        ({"installed_equal": None}, "installed library's equality is None"),
    ],
)
def test_each_deviation_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"cortex-a76: {message}"):
        difference(HERE, THERE | wrong, "cortex-a76")
