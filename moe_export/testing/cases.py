"""The table of cases that every executor of `RaggedMoE` must pass."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from moe_export.formats import FORMATS, QuantizedMatrix
from moe_export.op import spec
from moe_export.op.reference import Expert, Weight
from moe_export.op.scales import TokenScales


@dataclass(frozen=True)
class Case:
    """Sizes and routing of one call.

    Attributes:
        name: Name of the test.
        widths: Widths of the routed experts.
        tokens: Number of tokens.
        top_k: Experts chosen by a token.
        hidden: Hidden size.
        shared_width: Width of the shared expert; None for no shared expert.
        activation: Activation of the experts.
        scales: Inputs of `spec.SCALE_INPUTS` that the node has. With `units` the hidden scale has
            more columns than the widest expert has units, else as many.
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
    shared_width: int | None = None
    activation: spec.Activation = "swiglu"
    scales: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """Arrays of one call, in the order of the node's inputs."""

    x: NDArray[Any]
    expert_indices: NDArray[np.int64]
    routing_weights: NDArray[Any]
    experts: tuple[Expert, ...]
    shared: Expert | None = None
    shared_weight: NDArray[Any] | None = None
    format_name: spec.Format = "float32"
    group_size: int = 0
    activation: spec.Activation = "swiglu"
    scales: TokenScales | None = None

    @property
    def extra_inputs(self) -> dict[str, NDArray[Any]]:
        """Scales of the node by name, in order."""
        return {} if self.scales is None else self.scales.by_name

    @property
    def weights(self) -> list[NDArray[Any]]:
        """The node's weights in order; a quantized weight gives its parts one by one."""
        experts = self.experts if self.shared is None else (*self.experts, self.shared)
        return [
            array
            for expert in experts
            for weight in expert
            for array in (weight.parts if isinstance(weight, QuantizedMatrix) else (weight,))
        ]


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
    Case("shared_expert", MIXED, tokens=7, top_k=2, shared_width=50),
    Case("shared_expert_and_one_token", MIXED, tokens=1, top_k=2, shared_width=96),
    Case("shared_expert_and_no_tokens", MIXED, tokens=0, top_k=2, shared_width=50),
    Case("shared_expert_of_width_zero", MIXED, tokens=7, top_k=2, shared_width=0),
    Case("all_empty_but_the_shared_expert", (0, 0), tokens=7, top_k=1, shared_width=33),
    *(
        case
        for activation in spec.ACTIVATIONS[1:]
        for case in (
            Case(f"{activation}", (*MIXED, 96), tokens=7, top_k=3, activation=activation),
            Case(f"{activation}_and_one_token", MIXED, 1, top_k=2, activation=activation),
            Case(f"{activation}_and_no_tokens", MIXED, 0, top_k=2, activation=activation),
            Case(
                f"{activation}_and_a_shared_expert",
                (3, 0, 65),
                tokens=13,
                top_k=2,
                hidden=33,
                shared_width=50,
                activation=activation,
            ),
        )
    ),
)

TIED = ("input_scale", "hidden_scale")
THREE = spec.SCALE_INPUTS[:3]

SCALED_CASES = (
    Case("scaled_input", MIXED, tokens=7, top_k=2, scales=TIED[:1]),
    Case("scaled_input_and_hidden", MIXED, tokens=7, top_k=2, scales=TIED),
    Case("scaled_hidden", MIXED, tokens=1, top_k=2, scales=TIED[1:]),
    Case("scaled_without_tokens", MIXED, tokens=0, top_k=2, scales=(*TIED, "units")),
    Case("scaled_units", MIXED, tokens=7, top_k=2, scales=(*TIED, "units")),
    Case("scaled_units_and_one_token", MIXED, tokens=1, top_k=3, scales=(*TIED, "units")),
    Case("scaled_units_wide", (256, 200, 0, 129), 16, 2, hidden=256, scales=(*TIED, "units")),
    Case(
        "scaled_units_beside_a_shared_expert",
        (3, 0, 65),
        tokens=13,
        top_k=2,
        hidden=33,
        shared_width=50,
        scales=(*TIED, "units"),
    ),
    Case(
        "scaled_without_a_gate",
        (*MIXED, 96),
        tokens=7,
        top_k=3,
        shared_width=33,
        activation="relu2",
        scales=(*TIED, "units"),
    ),
    Case("scaled_geglu", MIXED, tokens=7, top_k=2, activation="geglu", scales=(*TIED, "units")),
)
"""Cases with factors per token that gate and up share."""

UP_SCALED_CASES = (
    Case("scaled_up", MIXED, tokens=7, top_k=2, scales=THREE),
    Case("scaled_up_and_one_token", MIXED, tokens=1, top_k=3, hidden=80, scales=THREE[:2]),
    Case("scaled_up_geglu", MIXED, tokens=25, top_k=2, activation="geglu", scales=THREE),
    Case(
        "scaled_up_and_units_beside_a_shared_expert",
        (3, 0, 65),
        tokens=13,
        top_k=2,
        shared_width=50,
        scales=spec.SCALE_INPUTS,
    ),
)
"""Cases in which `up` has factors of its own."""

FACTOR_CASES = (*SCALED_CASES, *UP_SCALED_CASES)
"""All cases with factors per token."""

DTYPES = ("float32", "float16")

Kind = tuple[str, spec.Format, int]
KINDS: tuple[Kind, ...] = (
    ("float32", "float32", 0),
    ("float16", "float16", 0),
    ("float32", "bfloat16", 0),
    ("float16", "bfloat16", 0),
    ("float32", "int8", 32),
    ("float32", "int4", 32),
    ("float32", "int4", 64),
    ("float32", "int8", 128),
    ("float16", "int4", 32),
    ("float16", "int8", 32),
    ("float32", "uint8", 32),
    ("float32", "uint4", 64),
    ("float32", "nf4", 32),
    ("float16", "uint8", 64),
    ("float16", "uint4", 32),
    ("float16", "nf4", 64),
)
"""Kinds: dtype of x, format of the weights, and their group size."""


OF_THE_FORMAT = (
    *("one_token", "aligned_widths", "odd_widths_and_hidden", "all_widths_one", "all_widths_zero"),
    *("wide", "shared_expert", "shared_expert_and_one_token", "relu2_and_a_shared_expert"),
)
"""Names of cases that read weights differently: edges, several groups, without a gate.

The others vary routing, the number of tokens and the activation, which are the same code in every
format.
"""


def cases_and_kinds(
    cases: Collection[Case], kinds: Collection[Kind], thorough: Collection[Kind]
) -> list[tuple[Case, Kind]]:
    """Pairs that an executor with one code for all formats is tested with.

    Args:
        cases: Cases to choose from.
        kinds: Kinds to choose from; each is met by the cases `OF_THE_FORMAT`.
        thorough: Kinds that are met by every case.
    """
    return [
        (case, kind)
        for case in cases
        for kind in kinds
        if kind in thorough or case.name in OF_THE_FORMAT
    ]


def id_of(value: Case | Kind) -> str:
    """Name of a case or kind in the name of a test."""
    return value.name if isinstance(value, Case) else str(value)


def kinds_of(formats: Collection[str]) -> tuple[Kind, ...]:
    """Kinds whose format is one of `formats`."""
    return tuple(kind for kind in KINDS if kind[1] in formats)


def weight_of(
    matrix: NDArray[Any], format_name: spec.Format | None, group_size: int, dtype: str
) -> Weight:
    """Matrix in a format; as it is for None and the formats of float16 and float32."""
    if format_name in spec.QUANTIZED_FORMATS:
        return FORMATS[format_name](matrix, group_size, dtype)
    return matrix.astype(ml_dtypes.bfloat16) if format_name == "bfloat16" else matrix


def inputs_of(
    case: Case, dtype: str, format_name: spec.Format | None = None, group_size: int = 0
) -> Inputs:
    """Arrays of a case, the same at every call; all values are of order one.

    Args:
        case: Sizes and routing.
        dtype: dtype of x.
        format_name: Format of the weights; None for the dtype of x.
        group_size: Weights that share a scale in a quantized format.
    """
    format_name = format_name or dtype
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

    def weight(rows: int, columns: int, scale: float) -> Weight:
        return weight_of(normal(rows, columns, scale=scale), format_name, group_size, dtype)

    def expert(width: int) -> Expert:
        gate_scale = case.hidden**-0.5
        into = len(spec.expert_inputs(case.activation)) - 1
        return (
            *(weight(case.hidden, width, gate_scale) for _ in range(into)),
            weight(width, case.hidden, max(width, 1) ** -0.5),
        )

    experts = tuple(expert(width) for width in case.widths)
    x = normal(case.tokens, case.hidden)
    shared = shared_weight = None
    if case.shared_width is not None:
        shared, shared_weight = expert(case.shared_width), normal(case.tokens, 1)
    scales = scales_of(random, case, dtype) if case.scales else None
    return Inputs(
        x,
        indices,
        weights,
        experts,
        shared,
        shared_weight,
        format_name,
        group_size,
        case.activation,
        scales,
    )


def scales_of(random: np.random.Generator, case: Case, dtype: str) -> TokenScales:
    """Factors around one, and units in rising order within each expert, some of them left out."""
    full_width = max(case.widths) + (5 if "units" in case.scales else 0)
    columns = {"input_scale": case.hidden, "up_scale": case.hidden, "hidden_scale": full_width}
    factors = {
        name: (1 + random.standard_normal((case.tokens, columns[name])) / 2).astype(dtype)
        for name in case.scales
        if name in columns
    }
    kept = [np.sort(random.permutation(full_width)[:width]) for width in case.widths]
    units = np.concatenate(kept).astype(np.int32) if "units" in case.scales else None
    return TokenScales(**factors, units=units)
