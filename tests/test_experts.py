from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_export.errors import ShapeError
from moe_export.experts import ExpertTable, kept_rows


def test_an_expert_of_width_zero_owns_no_rows() -> None:
    table = ExpertTable((3, 0, 2))
    assert table.offsets == (0, 3, 3, 5)
    assert table.owner_R.tolist() == [0, 0, 0, 2, 2]
    assert table.slice_of(1) == slice(3, 3)


def test_ties_keep_the_lower_dimension() -> None:
    kept = kept_rows(np.array([1.0, 2.0, 1.0, 1.0]), ExpertTable((4,)), [2])
    assert kept[0].tolist() == [0, 1]


def test_unknown_dimensions_are_kept_first() -> None:
    kept = kept_rows(np.array([5.0, np.inf, 4.0]), ExpertTable((3,)), [1])
    assert kept[0].tolist() == [1]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_kept_rows_are_ascending_and_no_dropped_one_is_more_important(
    widths: list[int], random: object
) -> None:
    table = ExpertTable(tuple(widths))
    rng = np.random.default_rng(sum(widths))
    importance = rng.integers(0, 4, table.rows).astype(np.float64)
    narrower = [width // 2 for width in widths]
    for expert, rows in enumerate(kept_rows(importance, table, narrower)):
        of_expert = importance[table.slice_of(expert)]
        assert len(rows) == narrower[expert]
        assert (np.diff(rows) > 0).all()
        dropped = np.setdiff1d(np.arange(widths[expert]), rows)
        if len(rows) and len(dropped):
            assert of_expert[rows].min() >= of_expert[dropped].max()


@pytest.mark.parametrize(
    ("importance", "widths", "message"),
    [
        (np.zeros(4), [1, 1], r"importance has shape \(4,\), expected \(5,\)"),
        (np.zeros(5), [1], "1 widths given for 2 experts"),
        (np.zeros(5), [4, 1], "expert 0: width 4, expected 0 to 3"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    importance: np.ndarray, widths: list[int], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        kept_rows(importance, ExpertTable((3, 2)), widths)
