"""The format of `RaggedMoEPacked` byte by byte, as docs/reference/operator.md describes it.

Each test holds a tiny layer and its whole tensor. Numbers in hexadecimal are little-endian.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.op.packed import PackedLayout, Packer


def _tensor(library: Path, layout: PackedLayout, *weights: NDArray[Any]) -> bytes:
    (width,) = layout.widths
    return layout.header() + Packer(layout, library).expert(weights, width, "gate_0").tobytes()


def _header(numbers: Sequence[str], hidden_size: str, total_bytes: str, width: str) -> bytes:
    """48 bytes of header, one width, and zeros up to 64 bytes."""
    magic = "6d 6f 65 70 61 63 6b 00"
    return bytes.fromhex(magic + "".join(numbers) + hidden_size + total_bytes + width).ljust(
        64, b"\0"
    )


def _hex(*parts: tuple[str, int]) -> bytes:
    """Bytes in hexadecimal, each part repeated."""
    return b"".join(bytes.fromhex(text) * count for text, count in parts)


def test_a_layer_of_floats(library: Path) -> None:
    half = np.float16
    gate, up, down = half([[1], [2]]), half([[3], [4]]), half([[5, 6]])
    header = _header(
        [
            "01 00 00 00",  # version
            "01 00 00 00",  # format: float16
            "00 00 00 00",  # activation: swiglu
            "00 00 00 00",  # group size
            "01 00 00 00",  # experts
            "00 00 00 00",  # has a shared expert
        ],
        hidden_size="02 00 00 00 00 00 00 00",
        total_bytes="c0 01 00 00 00 00 00 00",  # 64 + 2 * 128 + 128
        width="01 00 00 00 00 00 00 00",
    )
    # A row of a panel is 64 columns: 32 of gate and 32 of up, or 64 of down.
    gate_and_up = _hex(
        *(("00 3c", 1), ("00 00", 31), ("00 42", 1), ("00 00", 31)),  # depth 0: 1, 3
        *(("00 40", 1), ("00 00", 31), ("00 44", 1), ("00 00", 31)),  # depth 1: 2, 4
    )
    only_down = _hex(("00 45", 1), ("00 46", 1), ("00 00", 62))
    layout = PackedLayout("float16", 0, 2, (1,))
    assert _tensor(library, layout, gate, up, down) == header + gate_and_up + only_down


def test_a_layer_of_four_bits_without_a_gate(library: Path) -> None:
    up = np.array([[-8], [-7], [-6], [-5], [1], [2], [3], [4]], ml_dtypes.int4)
    down = np.arange(-4, 4).reshape(1, 8).astype(ml_dtypes.int4)
    scales = np.float16([[0.5]]), np.ones((1, 8), np.float16)
    header = _header(
        [
            "01 00 00 00",
            "04 00 00 00",  # int4
            "04 00 00 00",  # relu2
            "20 00 00 00",  # groups of 32
            "01 00 00 00",
            "00 00 00 00",
        ],
        hidden_size="08 00 00 00 00 00 00 00",
        total_bytes="40 09 00 00 00 00 00 00",  # 64 + 2 * 1152
        width="01 00 00 00 00 00 00 00",
    )
    # A block: 64 scales, then 4 steps of 8 depths; 4 bytes a column. Codes are stored plus 8; a low
    # nibble holds depths 0 to 3, a high one depths 4 to 7.
    up_block = _hex(
        ("00 38", 1), ("00 00", 63), ("90 a1 b2 c3", 1), ("88", 4 * 63), ("88", 3 * 256)
    )
    columns = [(f"{0x84 + column:02x} 88 88 88", 1) for column in range(8)]
    down_block = _hex(("00 3c", 8), ("00 00", 56), *columns, ("88", 4 * 56), ("88", 3 * 256))
    layout = PackedLayout("int4", 32, 8, (1,), activation="relu2")
    assert (
        _tensor(library, layout, up, scales[0], down, scales[1]) == header + up_block + down_block
    )


def test_a_layer_with_zero_points(library: Path) -> None:
    up, down = np.uint8([[10], [250]]), np.uint8([[7, 9]])
    header = _header(
        [
            "01 00 00 00",
            "05 00 00 00",  # uint8
            "03 00 00 00",  # relu
            "80 00 00 00",  # groups of 128
            "01 00 00 00",
            "00 00 00 00",
        ],
        hidden_size="02 00 00 00 00 00 00 00",
        total_bytes="c0 11 00 00 00 00 00 00",  # 64 + 2 * 2240
        width="01 00 00 00 00 00 00 00",
    )
    # A block: 64 scales, 64 zero points, then 8 steps of 4 depths. Beyond the depth a column's code
    # is its zero point.
    up_block = _hex(
        *(("00 40", 1), ("00 00", 63), ("64", 1), ("00", 63)),
        *(("0a fa 64 64", 1), ("00", 4 * 63)),
        *[("64 64 64 64", 1), ("00", 4 * 63)] * 7,
    )
    down_block = _hex(
        *(("00 3c", 2), ("00 00", 62), ("03 04", 1), ("00", 62)),
        *(("07 03 03 03 09 04 04 04", 1), ("00", 4 * 62)),
        *[("03 03 03 03 04 04 04 04", 1), ("00", 4 * 62)] * 7,
    )
    layout = PackedLayout("uint8", 128, 2, (1,), activation="relu")
    weights = (up, np.float16([[2]]), np.uint8([[100]]))
    weights += (down, np.ones((1, 2), np.float16), np.uint8([[3, 4]]))
    assert _tensor(library, layout, *weights) == header + up_block + down_block
