"""Formats without codes: the floats themselves."""

from __future__ import annotations

from moe_export.formats.facts import EVERYWHERE, FormatFacts

RUN = EVERYWHERE - {"rounding"}

FLOAT32 = FormatFacts(
    name="float32",
    float_bits=32,
    uses=frozenset(),
    executors=RUN,
    panel_bits=32,
    cuda_dtypes=("float32",),
)
FLOAT16 = FormatFacts(
    name="float16",
    float_bits=16,
    uses=frozenset(),
    executors=RUN,
    panel_bits=16,
    cuda_dtypes=("float16",),
)
"""The dtypes of a whole model, which a recipe calls `float`, whichever it is."""

BFLOAT16 = FormatFacts(
    name="bfloat16", float_bits=16, executors=RUN, panel_bits=16, cuda_dtypes=("float32",)
)
"""Floats in two bytes, in a model of either dtype."""
