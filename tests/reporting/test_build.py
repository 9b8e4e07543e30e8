from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_export.artifacts.base import load_json
from moe_export.artifacts.importance import Importance
from moe_export.reporting.build import headline_speed
from moe_export.reporting.build_plan import importance_facts, model_facts
from moe_export.reporting.build_validation import recovery_of

PLAN = {
    "score": "fisher",
    "widths_before": [[2, 2]],
    "layers": [{"widths": [1, 1]}],
}


def importance(*scores: float, tokens: tuple[int, int] = (3, 1)) -> Importance:
    return Importance({"fisher": [np.array(scores)]}, [np.array(tokens)])


def test_importance_kept_is_that_of_the_rows_kept_in_each_expert() -> None:
    found = importance_facts(PLAN, importance(6.0, 3.0, 0.0, 1.0))
    assert found["rows_kept"] == 0.5
    assert found["importance_kept"] == pytest.approx(0.7)  # (6 + 1) / 10
    by_rows = {point["rows"]: point["importance"] for point in found["curve"]}
    assert by_rows[0.25] == pytest.approx(0.6)
    assert by_rows[0.5] == pytest.approx(0.9)
    assert by_rows[1.0] == 1.0


def test_rows_whose_importance_is_unknown_are_outside_the_curve() -> None:
    found = importance_facts(PLAN, importance(np.inf, np.inf, 3.0, 1.0))
    assert found["known_rows"] == 2
    assert found["rows_kept"] == 0.5
    assert found["importance_kept"] == pytest.approx(0.75)


def test_no_importance_at_all_gives_no_curve() -> None:
    found = importance_facts(PLAN, importance(0.0, 0.0, 0.0, 0.0))
    assert found["curve"] == []
    assert found["importance_kept"] is None


def test_active_parameters_are_weighed_by_the_tokens_of_each_expert(run: Path) -> None:
    plan = load_json(run / "plan" / "plan.json")
    tokens = [np.zeros(16, np.int64) for _ in range(4)]
    for layer in tokens:
        layer[[2, 5]] = 10  # 10 tokens, each sent to experts 2 and 5
    facts = model_facts(run / "prune", plan, Importance({}, tokens))
    widths = [layer["widths"] for layer in plan["layers"]]
    routed = 3 * 128 * sum(map(sum, widths))
    chosen = 3 * 128 * sum(layer[2] + layer[5] for layer in widths)
    expected = facts["parameters"]["after"] - routed + chosen
    assert facts["active_parameters_per_token"]["after"] == pytest.approx(expected)


def test_active_parameters_are_unknown_without_tokens(run: Path) -> None:
    plan = load_json(run / "plan" / "plan.json")
    nothing = Importance({}, [np.zeros(16, np.int64)] * 4)
    assert model_facts(run / "prune", plan, nothing)["active_parameters_per_token"] == {
        "before": None,
        "after": None,
    }


def test_recovery_leaves_out_what_the_baseline_cannot_do() -> None:
    baseline = {"a": {"exact_match": 0.8}, "b": {"exact_match": 0.0}, "c": {"exact_match": None}}
    pruned = {"a": {"exact_match": 0.4}, "b": {"exact_match": 0.3}, "c": {"exact_match": None}}
    assert recovery_of(pruned, baseline) == pytest.approx(0.5)
    assert recovery_of(pruned, {}) is None


def test_the_headline_speed_is_the_smallest_batch_with_the_most_threads() -> None:
    shape = {"prompt_tokens": 8, "new_tokens": 8}
    speed = [
        {"provider": provider, "batch_size": batch, "threads": threads} | shape
        for provider in ("cpu", "cuda")
        for batch in (8, 1)
        for threads in (1, 4)
    ]
    found = headline_speed(speed)
    assert found == {"provider": "cpu", "batch_size": 1, "threads": 4} | shape
    assert headline_speed([]) is None


def test_groups_are_told_of_where_something_has_them() -> None:
    from moe_export.reporting.build_validation import _format

    formats = {"experts": "bfloat16", "dense": "float", "embedding": "float", "group_size": 32}
    assert _format({"quantization": formats}, "float16") == "experts bfloat16, else float16"
    coded = {"quantization": formats | {"dense": "int8"}}
    assert _format(coded, "float16").endswith(
        "attention and lm_head int8 in groups of 32, else float16"
    )
