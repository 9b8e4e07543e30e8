"""The part of `moe-export check-gpu` with ONNX Runtime's own operators, on the CPU and small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe_export.gpu_check import peers
from moe_export.gpu_check.apart import ApartError
from moe_export.testing import layer_sizes as sizes


@pytest.fixture
def small_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HIDDEN", 128), ("EXPERTS", 4), ("TOP_K", 2)):
        monkeypatch.setattr(sizes, name, value)
    monkeypatch.setattr(sizes, "FULL_WIDTH", 256)
    monkeypatch.setattr(sizes, "MEAN_WIDTH", 128)


@pytest.mark.parametrize("candidate", peers.CANDIDATES, ids=lambda found: found.model)
@pytest.mark.usefixtures("small_layers")
def test_a_layer_of_ours_and_a_padded_one_run_in_float16(candidate: peers.Candidate) -> None:
    rows = peers.times_of(replace(candidate, layers=2), (1, 3), "cpu")
    assert [row["tokens"] for row in rows] == [1, 3]
    assert {row["layer"] for row in rows} == {candidate.model}
    assert {row["graph"] for row in rows} == {"none on the CPU"}
    assert min(row["us_per_layer"] for row in rows) > 0


@pytest.mark.usefixtures("small_layers")
def test_inputs_of_ours_choose_each_expert_equally_often_and_differ_from_run_to_run() -> None:
    draws = peers.draws_of("ragged_int4", 3)
    chosen = np.concatenate([fed["expert_indices"] for fed in draws])
    np.testing.assert_array_equal(np.bincount(chosen.ravel()), [3] * 4)
    assert [fed["x"].dtype for fed in draws] == [np.float16] * 2
    padded = peers.draws_of(peers.QMOE, 3)
    assert not np.array_equal(padded[0]["scores"], padded[1]["scores"])


def test_ours_are_given_as_times_as_fast_as_each_peer_that_ran() -> None:
    rows = [
        {"layer": peers.MOE, "tokens": 4, "us_per_layer": 60.0},
        {"layer": peers.QMOE, "refused": "words"},
        {"layer": "ragged_int4", "tokens": 4, "us_per_layer": 20.0},
    ]
    assert peers.with_ratios(rows)[2] == {
        "layer": "ragged_int4",
        "tokens": 4,
        "us_per_layer": 20.0,
        "times_as_fast_as_padded_moe": 3.0,
        "times_as_fast_as_padded_qmoe": None,
    }


def test_a_peer_that_refuses_is_told_of_in_its_words_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def __init__(self, module: str, function: str, candidate: Any, *arguments: Any) -> None:
            self._model = candidate.model

        def result(self, timeout_s: float) -> list[dict[str, Any]]:
            if self._model in (peers.QMOE, "ragged_bfloat16"):
                raise ApartError("FAIL: no kernel")
            return [{"layer": self._model, "tokens": 1, "us_per_layer": 2.0}]

    monkeypatch.setattr(peers, "Apart", Refusing)
    rows = peers.peers()
    words = "FAIL: no kernel"
    assert [row.get("refused") for row in rows] == [None, None, words, words, None]
    # A peer need not run; ours has to.
    assert [row.get("held") for row in rows] == [None, None, False, None, None]
    assert rows[4]["times_as_fast_as_padded_moe"] == 1.0
