"""Sizes of the layers that are timed: those of Qwen1.5-MoE-A2.7B."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats import GRIDS, known_to
from moe_export.op.packed import PackedLayout

HIDDEN, EXPERTS, TOP_K, FULL_WIDTH, MEAN_WIDTH, SHARED_WIDTH = 2048, 60, 4, 1408, 704, 5632
GROUP = 32
SHAPES = {
    "hidden": HIDDEN,
    "experts": EXPERTS,
    "top_k": TOP_K,
    "full_width": FULL_WIDTH,
    "mean_width": MEAN_WIDTH,
    "shared_width": SHARED_WIDTH,
}

WEIGHT_BITS = {
    name: PackedLayout(name, GROUP, HIDDEN, ()).expert_bytes(MEAN_WIDTH)
    / (3 * HIDDEN * MEAN_WIDTH / 8)
    for name in known_to("packed")
}
"""Bits that our kernels read for a weight, with its share of scales and zero points."""

NUMPY = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    **{name: grid.code_dtype for name, grid in GRIDS.items()},
}


def skewed_widths(random: np.random.Generator) -> NDArray[np.int64]:
    """Multiples of 32 from 32 to the full width, many near both ends, with the mean exact."""
    steps = FULL_WIDTH // 32
    widths = np.rint(random.beta(0.9, 0.9, EXPERTS) * steps).astype(np.int64).clip(1, steps)
    while (excess := int(widths.sum()) - MEAN_WIDTH // 32 * EXPERTS) != 0:
        expert = random.integers(EXPERTS)
        widths[expert] = np.clip(widths[expert] - np.sign(excess), 1, steps)
    return widths * 32
