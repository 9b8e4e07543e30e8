from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_export.errors import PlanError
from moe_export.experts import ExpertTable, kept_rows
from moe_export.planning.blocks import WidthRule
from moe_export.planning.widths import solve_widths

TABLES = [ExpertTable((4, 4)), ExpertTable((4, 4))]


def importance_of(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random(table.rows) for table in TABLES]


def test_one_ranking_over_the_model_keeps_exactly_the_most_important_dimensions() -> None:
    importance = importance_of(0)
    widths = solve_widths(importance, TABLES, 7, WidthRule())
    kept = [
        layer[table.slice_of(expert)][rows]
        for layer, table, layer_widths in zip(importance, TABLES, widths, strict=True)
        for expert, rows in enumerate(kept_rows(layer, table, layer_widths))
    ]
    expected = np.sort(np.concatenate(importance))[-7:]
    assert np.array_equal(np.sort(np.concatenate(kept)), expected)


def test_scope_layer_gives_every_layer_its_share() -> None:
    importance = [np.ones(8), np.zeros(8)]
    assert [sum(w) for w in solve_widths(importance, TABLES, 8, WidthRule(scope="layer"))] == [4, 4]
    assert [sum(w) for w in solve_widths(importance, TABLES, 8, WidthRule(scope="model"))] == [8, 0]


def test_scope_expert_gives_every_expert_the_same_width() -> None:
    widths = solve_widths(importance_of(1), TABLES, 8, WidthRule(scope="expert"))
    assert widths == [[2, 2], [2, 2]]


def test_unit_expert_keeps_or_empties_whole_experts() -> None:
    widths = solve_widths(importance_of(2), TABLES, 9, WidthRule(unit="expert"))
    assert sorted(width for layer in widths for width in layer) == [0, 0, 4, 4]


def test_the_floor_comes_before_the_ranking() -> None:
    importance = [np.ones(8), np.zeros(8)]
    widths = solve_widths(importance, TABLES, 8, WidthRule(min_width=1))
    assert [min(layer) for layer in widths] == [2, 1]
    assert sum(map(sum, widths)) == 8


def test_a_floor_above_the_budget_is_refused_with_both_numbers() -> None:
    with pytest.raises(PlanError, match="keeps 12 rows, the budget is 8"):
        solve_widths(importance_of(3), TABLES, 8, WidthRule(min_width=3))
    with pytest.raises(PlanError, match="keeps 2 of 4 dimensions, min_width is 3"):
        solve_widths(importance_of(3), TABLES, 8, WidthRule(scope="expert", min_width=3))


@given(
    seed=st.integers(0, 99),
    budget=st.integers(0, 16),
    step=st.integers(1, 5),
    scope=st.sampled_from(["model", "layer", "expert"]),
)
def test_the_budget_holds_and_widths_are_multiples_or_whole(
    seed: int, budget: int, step: int, scope: str
) -> None:
    rule = WidthRule(scope=scope, multiple_of=step)
    widths = solve_widths(importance_of(seed), TABLES, budget, rule)
    flat = [width for layer in widths for width in layer]
    assert sum(flat) <= budget
    assert all(width % step == 0 or width == 4 for width in flat)


def test_rows_wanting_after_rounding_are_fewer_than_one_multiple() -> None:
    widths = solve_widths(importance_of(4), TABLES, 11, WidthRule(multiple_of=2))
    assert sum(map(sum, widths)) == 10


def test_unknown_experts_are_kept_first_or_last() -> None:
    for value, expected in ((np.inf, 4), (-np.inf, 0)):
        importance = importance_of(5)
        importance[1][4:] = value
        assert solve_widths(importance, TABLES, 8, WidthRule())[1][1] == expected
