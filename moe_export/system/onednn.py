"""Batch size rule of oneDNN, the library by which torch multiplies matrices on a CPU."""

from __future__ import annotations

ROWS_AT_ONCE = 32
"""Multiple that the number of rows of a bfloat16 product on a CPU is padded to.

oneDNN generates and keeps code for each number of rows, which takes as long as several products.
The number of tokens that an expert gets varies from batch to batch.
"""
