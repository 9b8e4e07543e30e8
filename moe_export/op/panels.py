"""Bytes of a matrix in the panels of the native kernels (`op/native/cpu/panels.h`).

Legend: K depth.
"""

from __future__ import annotations

from moe_export.formats import FormatFacts

PANEL_COLUMNS = 64
BLOCK = 32
"""Depths that share a scale in a packed panel, whatever the group size of the model."""

ALIGNMENT_BYTES = 64

_SCALE_BYTES, _ZERO_POINT_BYTES = 2, 1


def round_up(n: int, multiple: int) -> int:
    """The next multiple of `multiple` that is not below n."""
    return -(-n // multiple) * multiple


def column_bytes(facts: FormatFacts, depth: int) -> int:
    """Bytes of a column [K], scales and zero points included."""
    bits = facts.panel_bits
    assert bits is not None  # `packed` is among the executors
    if not facts.is_quantized:
        return depth * bits // 8
    return -(-depth // BLOCK) * BLOCK * bits // 8 + column_scale_bytes(facts, depth)


def column_scale_bytes(facts: FormatFacts, depth: int) -> int:
    """Bytes of the scales and zero points of a column [K]."""
    if not facts.is_quantized:
        return 0
    block_bytes = _SCALE_BYTES + (_ZERO_POINT_BYTES if facts.has_zero_point else 0)
    return -(-depth // BLOCK) * block_bytes
