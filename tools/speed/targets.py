"""Targets for speed of whole models, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_export.bench.models import COPIED
from tools.speed import variants
from tools.speed.pieces import DEEP, FLAT, FLAT_CASE
from tools.speed.variants import Shape, active_bytes

WHOLE = 24
"""Number of layers of the real model."""

Ratio = Callable[[Mapping[str, Any], int], Sequence[float]]
"""Function from all results and a number of threads to ratios: one for each turn if turns have
ratios of their own, none if it was not measured."""

QUARTILES_FROM = 5
"""Fewest turns whose quartiles are shown."""


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        text: The measurement in words.
        least: Least ratio that meets it.
        ratio: Function that finds the ratio.
        bytes_ratio: Ratio of the bytes of weights that a step reads, the peer's over ours; None
            where a step takes time for more than weights.
    """

    text: str
    least: float
    ratio: Ratio
    bytes_ratio: float | None = None


def faster(piece: str, case: str, model: str, peer: str) -> Ratio:
    """Ratios of a peer's time to a model's."""

    def ratio(data: Mapping[str, Any], threads: int) -> Sequence[float]:
        found = data.get(f"{piece}-{threads}")
        if found is None or case not in found["seconds"]:
            return ()
        seconds = found["seconds"][case]
        return (np.array(seconds[peer]) / np.array(seconds[model])).tolist()

    return ratio


def deeper(piece: str, model: str, peer: str) -> Ratio:
    """Ratios of decoding at `WHOLE` layers, by lines through two depths."""

    def ratio(data: Mapping[str, Any], threads: int) -> Sequence[float]:
        found = data.get(f"depths-{piece}-{threads}")
        if found is None:
            return ()
        peer_s, model_s = (_line(found["seconds"], name) for name in (peer, model))
        return (peer_s / model_s).tolist()

    return ratio


def _line(seconds: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    flat, deep = (np.array(seconds[case][name]) for case in (FLAT_CASE, "decode"))
    whole: NDArray[np.float64] = deep + (deep - flat) / (DEEP - FLAT) * (WHOLE - DEEP)
    return whole


def second_thread(piece: str, case: str, model: str) -> Ratio:
    """Ratio of the medians of one thread and of two."""

    def ratio(data: Mapping[str, Any], threads: int) -> Sequence[float]:
        found = [data.get(f"{piece}-{number}") for number in (1, 2)]
        if threads == 1 or None in found:
            return ()
        one, two = (float(np.median(f["seconds"][case][model])) for f in found if f)
        return (one / two,)

    return ratio


def slowest_node(data: Mapping[str, Any], threads: int) -> Sequence[float]:
    """Least share of a plain read among nodes that read 1 % or more of the weights."""
    if "nodes" not in data:
        return ()
    shares = []
    for name, profile in data["nodes"]["nodes"].items():
        _, number, context = name.split(", ")
        read = sum(group["read_bytes"] for group in profile["groups"])
        shares += [
            group["read_bytes"] / group["seconds"] / profile["read_bytes_per_s"]
            for group in profile["groups"]
            if (int(number), context) == (threads, "64") and group["read_bytes"] > 0.01 * read
        ]
    return sorted(shares)[:1]


def fewer(shape: Shape, layers: int) -> float:
    """Bytes of weights that a token reads of the peer, over those of a shape in int4."""
    return variants.peer_bytes(layers) / active_bytes(shape, "int4", "int4", layers)


def planned_fewer() -> float:
    """Bytes that a token reads of the unpruned model, over those of the planned one."""
    shapes = (variants.UNPRUNED, variants.planned_shape())
    unpruned, planned = (active_bytes(shape, "int4", "int8", WHOLE) for shape in shapes)
    return unpruned / planned


HALF, BOTH = "half int4", "both half int4"
COPY = f"{HALF}{COPIED}"
Q4 = "Q4_0"

TARGETS = (
    Target(
        f"decode, batch 1, {HALF}, {DEEP} layers",
        1.7,
        faster("int4", "decode", HALF, Q4),
        fewer(variants.HALF, DEEP),
    ),
    Target(f"the same, {WHOLE} layers", 1.6, deeper("int4", HALF, Q4), fewer(variants.HALF, WHOLE)),
    Target(
        f"{COPY}, {DEEP} layers",
        1.7,
        faster("copied", "decode", COPY, Q4),
        fewer(variants.HALF, DEEP),
    ),
    Target(f"{BOTH}, {WHOLE} layers", 1.9, deeper("int4", BOTH, Q4), fewer(variants.BOTH, WHOLE)),
    Target(f"{HALF} after 1,024 tokens", 1.6, faster("context", "context 1024", HALF, Q4)),
    Target(f"{HALF} after 4,096 tokens", 1.6, faster("context", "context 4096", HALF, Q4)),
    Target(f"decode, batch 4, {HALF}", 3.0, faster("int4", "batch 4", HALF, Q4)),
    Target(f"decode, batch 8, {HALF}", 3.0, faster("int4", "batch 8", HALF, Q4)),
    Target(f"prefill 128, {HALF}", 3.0, faster("prefill", "prefill 128", HALF, Q4)),
    Target(f"prefill 512, {HALF}", 3.0, faster("prefill", "prefill 512", HALF, Q4)),
    Target(
        f"planned int4+int8 against unpruned int4+int8, {WHOLE} layers",
        1.2,
        deeper("recipe", "planned int4+int8", "unpruned int4+int8"),
        planned_fewer(),
    ),
    Target(
        "nodes that read 1 % of the weights or more, least share of a plain read", 0.9, slowest_node
    ),
    Target("2 threads against 1, decode", 1.8, second_thread("int4", "decode", HALF)),
    Target("2 threads against 1, prefill 128", 1.8, second_thread("prefill", "prefill 128", HALF)),
)
"""Ratios against llama.cpp's Q4_0 of the unpruned model where nothing else is said."""


def target_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table: measurement, target, ratio on one thread and on two, ratio of bytes."""
    return [
        [
            target.text,
            f"≥ {target.least}",
            *(_cell(target, data, number) for number in (1, 2)),
            "" if target.bytes_ratio is None else f"{target.bytes_ratio:.2f}",
        ]
        for target in TARGETS
    ]


def _cell(target: Target, data: Mapping[str, Any], threads: int) -> str:
    """Median over turns with its quartiles, and whether it meets the target."""
    ratios = target.ratio(data, threads)
    if not ratios:
        return ""
    low, found, high = np.percentile(ratios, (25, 50, 75))
    spread = f" ({low:.2f} to {high:.2f})" if len(ratios) >= QUARTILES_FROM else ""
    return f"{found:.2f}{spread}, {'met' if found >= target.least else 'missed'}"
