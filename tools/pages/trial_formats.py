"""Formats of three bits that are tried in Python, without kernels.

Legend: G groups, g rows of a group, N columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import NormalDist

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats import GRIDS, TABLE, FormatFacts, uint
from moe_export.formats.grid import Grid

BLOCK = 32
"""Values of a block of a panel, which has a scale in float16."""


def fit_signed(values_GgN: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
    """The scale [G, N] with which the value that is largest in magnitude has the code -4.

    >>> fit_signed(np.array([[[4.0], [-1.0]]], np.float32))[0].item()
    -1.0
    """
    low_GN = values_GgN.min(axis=1, initial=0)
    high_GN = values_GgN.max(axis=1, initial=0)
    scale_GN: NDArray[np.float32] = np.where(high_GN > -low_GN, high_GN, low_GN) / -4
    return scale_GN, None


def fit_quantiles(values_GgN: NDArray[np.float32]) -> tuple[NDArray[np.float32], None]:
    """The scale [G, N]: the value that is largest in magnitude, with its sign.

    >>> fit_quantiles(np.array([[[4.0], [-5.0]]], np.float32))[0].item()
    5.0
    """
    scale_GN, _ = fit_signed(values_GgN)
    return scale_GN * -np.float32(-4), None


def _quantiles() -> NDArray[np.float32]:
    """Quantiles of the normal distribution made as those of nf4, as whole 127ths.

    Whole numbers let a kernel look codes up as bytes and multiply these as int8.
    """
    normal = NormalDist()
    ends = 1 - (1 / 16 + 1 / 14) / 2
    low = [-normal.inv_cdf(p) for p in np.linspace(ends, 0.5, 4)[:-1]]
    high = [normal.inv_cdf(p) for p in np.linspace(0.5, ends, 5)[1:]]
    values = np.array([*low, 0.0, *high]) / max(high)
    return (np.rint(127 * values) / 127).astype(np.float32)


TRIALS = {
    facts.name: facts
    for facts in (
        FormatFacts(
            name="int3", grid=Grid(3, np.dtype(ml_dtypes.int4), (-4, 3), fit_signed), panel_bits=3
        ),
        FormatFacts(
            name="uint3",
            grid=Grid(
                3,
                np.dtype(ml_dtypes.uint4),
                (0, 7),
                partial(uint.fit, last=7),
                has_zero_point=True,
            ),
            panel_bits=3,
        ),
        FormatFacts(
            name="nf3",
            grid=Grid(3, np.dtype(ml_dtypes.uint4), (0, 7), fit_quantiles, codebook=_quantiles()),
            panel_bits=3,
        ),
    )
}
"""Formats by name: symmetric, with zero points, and with a codebook of eight values."""


@contextmanager
def known() -> Iterator[None]:
    """Makes the formats known to recipes, checkpoints and GPTQ in a `with` block."""
    for name, facts in TRIALS.items():
        assert facts.grid is not None
        TABLE[name], GRIDS[name] = facts, facts.grid
    try:
        yield
    finally:
        for name in TRIALS:
            del TABLE[name], GRIDS[name]


def panel_bits(name: str) -> float:
    """Bits of a value in a panel, with its share of scales and zero points.

    >>> panel_bits("int4"), panel_bits("int3"), panel_bits("uint3")
    (4.5, 3.5, 3.75)
    """
    facts = (TABLE | TRIALS)[name]
    assert facts.panel_bits is not None
    return facts.panel_bits + (16 + 8 * facts.has_zero_point) / BLOCK
