"""FP8 weights with one scale per block, as DeepSeek-V3 and Qwen publish them.

A matrix X is stored as FP8 codes (E4M3), and beside it `X_scale_inv` has a scale for each block of
128 rows and 128 columns; the last block of an axis may be smaller.

Legend: N rows, K columns of a matrix; I rows, J columns of its blocks.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

CONFIG_KEY = "quantization_config"
"""Config key of a checkpoint that other software quantized."""

SCALE_SUFFIX = "_scale_inv"
"""Ending of the name of a matrix's scales, after the name of the matrix."""

CODE_WORD = "F8_E4M3"
"""Dtype of the codes in a safetensors header."""

CODES = np.dtype(ml_dtypes.float8_e4m3fn)

READ_AS = np.dtype(ml_dtypes.bfloat16)
"""Dtype of the product of codes and scales; DeepSeek's own conversion rounds to it too."""

REASON = "multiplied into its FP8 weights, which are read as bfloat16"
"""Reason of the ledger why no scale is among the tensors of the model."""

LARGEST_BLOCK = 1 << 16


def block_of(config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block; None if a config names no FP8 weights with scales of blocks.

    >>> block_of({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    (128, 128)
    """
    entry = config.get(CONFIG_KEY)
    if not isinstance(entry, dict) or entry.get("quant_method") != "fp8":
        return None
    block = entry.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2:
        return None
    if not all(type(size) is int and 1 <= size <= LARGEST_BLOCK for size in block):
        return None
    return block[0], block[1]


def blocks(shape_NK: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """Number of blocks along each axis of a matrix.

    >>> blocks((300, 128), (128, 128))
    (3, 1)
    """
    return tuple(-(-size // step) for size, step in zip(shape_NK, block, strict=False))


def dequantized(
    codes_NK: NDArray[Any], scale_IJ: NDArray[Any], block: tuple[int, int]
) -> NDArray[Any]:
    """Matrix [N, K] in bfloat16: each code times the scale of its block, computed in float32."""
    rows, columns = codes_NK.shape
    values_NK = codes_NK.astype(np.float32)
    scale_NJ = np.repeat(scale_IJ.astype(np.float32), block[0], axis=0)[:rows]
    for number, start in enumerate(range(0, columns, block[1])):
        values_NK[:, start : start + block[1]] *= scale_NJ[:, number, None]
    return values_NK.astype(READ_AS)
