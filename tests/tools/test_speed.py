"""The comparison of whole models with llama.cpp: widths that are planned, and ratios."""

from __future__ import annotations

from typing import Any

import pytest

from tools.speed.pieces import FLAT_CASE
from tools.speed.targets import TARGETS, deeper, faster, second_thread, slowest_node, target_rows
from tools.speed.variants import (
    MULTIPLE,
    SPEEDUP,
    UNPRUNED,
    Shape,
    active_bytes,
    peer_bytes,
    planned_shape,
)


def decoding(**seconds: list[float]) -> dict[str, Any]:
    return {"seconds": {"decode": seconds}}


DATA = {
    "depths-some-1": {
        "seconds": {
            "decode": {"ours": [5.0, 4.0, 6.0], "peer": [9.0, 8.0, 9.0]},
            FLAT_CASE: {"ours": [3.0, 2.0, 4.0], "peer": [5.0, 4.0, 5.0]},
        }
    },
    "some-1": decoding(ours=[5.0, 4.0, 6.0], peer=[9.0, 8.0, 9.0]),
    "some-2": decoding(ours=[2.5], peer=[6.0]),
}


def test_a_planned_shape_reads_as_little_as_its_speedup_asks_for() -> None:
    planned = planned_shape()
    wider = Shape("wider", planned.routed, planned.shared + MULTIPLE)
    unpruned, least, more = (
        active_bytes(shape, "int4", "int8", 24) for shape in (UNPRUNED, planned, wider)
    )
    assert unpruned / least >= SPEEDUP > unpruned / more


def test_bytes_of_the_peer_are_those_of_its_types() -> None:
    # Per layer: q, k, v, o; 4 experts and the shared one; router and gate of 61 columns in float16.
    layer = 4 * 2048**2 + 3 * 2048 * (4 * 1408 + 5632)
    rest = 2 * 2048 * 61
    head = 151_936 * 2048
    expected = 2 * (layer * 18 / 32 + rest) + head * 210 / 256
    assert peer_bytes(2) == pytest.approx(expected, rel=1e-3)


def test_ratios_are_those_of_turns_and_lines_over_depths() -> None:
    assert faster("some", "decode", "ours", "peer")(DATA, 1) == pytest.approx([1.8, 2.0, 1.5])
    assert second_thread("some", "decode", "ours")(DATA, 2) == pytest.approx([2.0])
    # In the first turn (5 - 3) / 4 and (9 - 5) / 4 a layer, so 14 and 27 at 24 layers.
    assert deeper("some", "ours", "peer")(DATA, 1) == pytest.approx([27 / 14, 26 / 13, 27 / 15])
    assert deeper("some", "ours", "peer")(DATA, 2) == ()


def test_the_slowest_node_is_one_that_reads_weights_and_takes_time() -> None:
    groups = [
        {"name": "experts", "seconds": 2.0, "read_bytes": 8.0},
        {"name": "norm", "seconds": 0.001, "read_bytes": 0.0001},
        {"name": "attention", "seconds": 3.0, "read_bytes": 0.0},
    ]
    profile = {"groups": groups, "read_bytes_per_s": 5.0}
    assert slowest_node({"nodes": {"nodes": {"a, 1, 64": profile}}}, 1) == pytest.approx([0.8])
    assert slowest_node({"nodes": {"nodes": {"a, 1, 64": profile}}}, 2) == []


def test_an_unknown_measurement_is_left_open_in_the_table() -> None:
    rows = target_rows({"int4-1": decoding(**{"half int4": [1.0], "Q4_0": [1.6]})})
    assert rows[0][1:] == ["≥ 1.7", "1.60, missed", "", "1.34"]
    turns = {"half int4": [1.0] * 5, "Q4_0": [1.5, 1.6, 1.7, 1.8, 1.9]}
    assert target_rows({"int4-1": decoding(**turns)})[0][2] == "1.70 (1.60 to 1.80), met"
    assert len(rows) == len(TARGETS)
    assert all(row[2:4] == ["", ""] for row in rows[1:])
