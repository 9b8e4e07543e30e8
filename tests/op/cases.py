"""The one table of cases that every execution of `RaggedMoE` is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Case:
    """Sizes and routing of one call.

    Attributes:
        routing: `random` (distinct experts per token), `all_on_0` (first choice is always expert
            0), `duplicates` (all of a row's choices are one expert), `ties` (equal weights),
            `empty_only` (only experts of width 0 are chosen), `signed` (negative and zero weights).
    """

    name: str
    widths: tuple[int, ...]
    tokens: int
    top_k: int
    hidden: int = 48
    routing: str = "random"


@dataclass(frozen=True)
class Inputs:
    """The arrays of one call, in the order of the node's inputs."""

    x: NDArray[Any]
    expert_indices: NDArray[np.int64]
    routing_weights: NDArray[Any]
    experts: tuple[tuple[NDArray[Any], NDArray[Any], NDArray[Any]], ...]


MIXED = (8, 0, 1, 33, 7, 64)

CASES = (
    Case("one_token", MIXED, tokens=1, top_k=2),
    Case("no_tokens", MIXED, tokens=0, top_k=2),
    Case("seven_tokens", MIXED, tokens=7, top_k=2),
    Case("many_tokens", MIXED, tokens=128, top_k=3),
    Case("top_1", MIXED, tokens=7, top_k=1),
    Case("top_k_is_all_experts", MIXED, tokens=7, top_k=6),
    Case("aligned_widths", (64, 64, 64, 64), tokens=7, top_k=2),
    Case("odd_widths_and_hidden", (3, 5, 17, 31), tokens=7, top_k=2, hidden=33),
    Case("all_widths_one", (1, 1, 1), tokens=7, top_k=2),
    Case("all_widths_zero", (0, 0, 0), tokens=7, top_k=2),
    Case("a_single_expert", (16,), tokens=7, top_k=1),
    Case("one_expert_takes_all", MIXED, tokens=128, top_k=1, routing="all_on_0"),
    Case("one_expert_in_every_row", MIXED, tokens=7, top_k=3, routing="all_on_0"),
    Case("duplicate_experts_in_a_row", MIXED, tokens=7, top_k=3, routing="duplicates"),
    Case("tied_weights", MIXED, tokens=7, top_k=2, routing="ties"),
    Case("only_empty_experts_chosen", MIXED, tokens=7, top_k=1, routing="empty_only"),
    Case("negative_and_zero_weights", MIXED, tokens=7, top_k=2, routing="signed"),
    Case("wide", (256, 200, 0, 129), tokens=16, top_k=2, hidden=256),
)

DTYPES = ("float32", "float16")


def inputs_of(case: Case, dtype: str) -> Inputs:
    """The arrays of a case, the same at every call; values are of order one throughout."""
    random = np.random.default_rng(20)
    num_experts = len(case.widths)

    def normal(*shape: int, scale: float = 1.0) -> NDArray[Any]:
        return (random.standard_normal(shape) * scale).astype(dtype)

    shape = (case.tokens, case.top_k)
    indices = np.array(
        [random.permutation(num_experts)[: case.top_k] for _ in range(case.tokens)], dtype=np.int64
    ).reshape(shape)
    weights = random.random(shape).astype(dtype)
    if case.routing == "all_on_0":
        others = (np.arange(1, case.top_k) + random.integers(0, num_experts, (case.tokens, 1))) % (
            num_experts - 1
        ) + 1
        indices = np.concatenate([np.zeros((case.tokens, 1), np.int64), others], axis=1)
    elif case.routing == "duplicates":
        indices[:] = indices[:, :1]
    elif case.routing == "ties":
        weights[:] = 0.5
    elif case.routing == "empty_only":
        indices[:] = case.widths.index(0)
    elif case.routing == "signed":
        weights[:, 0] *= -1
        weights[::2, 1] = 0
    else:
        assert case.routing == "random"
    gate_scale = case.hidden**-0.5
    experts = tuple(
        (
            normal(case.hidden, width, scale=gate_scale),
            normal(case.hidden, width, scale=gate_scale),
            normal(width, case.hidden, scale=max(width, 1) ** -0.5),
        )
        for width in case.widths
    )
    return Inputs(normal(case.tokens, case.hidden), indices, weights, experts)
