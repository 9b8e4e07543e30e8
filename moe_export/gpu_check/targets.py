"""Targets of the operator on a data-centre GPU, and the verdict of a run on each.

A missed target is reported and does not change the exit code of the check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Parts = dict[str, list[Row]]
"""Name of a part that ran to its rows."""

DECODE_TOKENS = (1, 4, 16)


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        what: Quantity and how it is measured, in words.
        aim: Least value that reaches the target, or greatest if `is_limit`.
        measure: Function that reads the value from the rows; gives None if they are absent.
        is_limit: True if less is better.
    """

    what: str
    aim: float
    measure: Callable[[Parts], float | None]
    is_limit: bool = False


def value(part: str, column: str, **where: Any) -> Callable[[Parts], float | None]:
    """Function that reads a column of the row with these values; it gives None without the row."""

    def measure(parts: Parts) -> float | None:
        return next(_matching(parts, part, column, where), None)

    return measure


def least(part: str, column: str, **where: Any) -> Callable[[Parts], float | None]:
    """Function that reads the least of a column over `DECODE_TOKENS`; None if one is absent."""

    def measure(parts: Parts) -> float | None:
        values = [value(part, column, **where, tokens=tokens)(parts) for tokens in DECODE_TOKENS]
        known = [number for number in values if number is not None]
        return min(known) if len(known) == len(values) else None

    return measure


def _matching(parts: Parts, part: str, column: str, where: Row) -> Iterator[float]:
    for row in parts.get(part, []):
        if row.get(column) is not None and where.items() <= row.items():
            yield row[column]


BFLOAT16 = {"layer": "skewed", "format": "bfloat16", "group": 0}
INT4 = {"layer": "skewed", "format": "int4", "group": 128}
HALF = {"model": "50 %", "layers": 24, "batch": 1}

TARGETS = (
    Target(
        "16 tokens, bfloat16: bytes of the experts touched over time, of the device's copy rate",
        0.6,
        value("layers", "of_copy", **BFLOAT16, tokens=16),
    ),
    Target(
        "16 tokens, int4 in groups of 128: the same",
        0.45,
        value("layers", "of_copy", **INT4, tokens=16),
    ),
    Target(
        "1 token, bfloat16, 4 routed experts of mean width 704, one of 15 layers in a captured "
        "graph, us (aimed at for an H200)",
        14,
        value("layers", "us", **BFLOAT16, tokens=1),
        is_limit=True,
    ),
    Target(
        "1 token, int4 in groups of 128: the same",
        9,
        value("layers", "us", **INT4, tokens=1),
        is_limit=True,
    ),
    Target(
        "1, 4 and 16 tokens, float16, mean width 704: times as fast as MoE padded to 1408, least",
        1.7,
        least("peers", "times_as_fast_as_padded_moe", layer="ragged_float16"),
    ),
    Target(
        "1, 4 and 16 tokens, int4 in groups of 128: times as fast as padded QMoE, least",
        1.7,
        least("peers", "times_as_fast_as_padded_qmoe", layer="ragged_int4"),
    ),
    Target(
        "4096 tokens, bfloat16: operations that remain, of the rate of a dense bfloat16 product",
        0.5,
        value("layers", "of_matrix_rate", **BFLOAT16, tokens=4096),
    ),
    Target(
        "whole model at 50 %, batch 1, of 24 layers by two numbers of them: times dense tokens/s",
        1.21,
        value("models", "times_as_fast_as_dense", **HALF),
    ),
    Target(
        "the same, the step alone, without the choice of the token on the host",
        1.21,
        value("models", "step_times_as_fast", **HALF),
    ),
    Target(
        "weight memory of 24 layers at 50 % in 16 bits, of dense",
        0.565,
        value("models", "of_dense_weight_bytes", **HALF),
        is_limit=True,
    ),
)


def verdicts(parts: Parts) -> list[Row]:
    """Rows of all targets, each with `yes`, `short`, or `not run` if its rows are absent."""
    rows = []
    for target in TARGETS:
        measured = target.measure(parts)
        reached = "not run"
        if measured is not None:
            is_limit, aim = target.is_limit, target.aim
            is_reached = measured <= aim if is_limit else measured >= aim
            reached = "yes" if is_reached else "short"
        limit = f"{'≤' if target.is_limit else '≥'} {target.aim:g}"
        rows.append({"target": target.what, "aim": limit, "found": measured, "reached": reached})
    return rows
