"""The CUDA kernels equal the reference on every case, in Triton's interpreter on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe_export.op.spec import Activation
from moe_export.op.triton import plan
from moe_export.testing.cases import (
    CASES,
    FACTOR_CASES,
    UP_SCALED_CASES,
    Case,
    Inputs,
    Kind,
    cases_and_kinds,
    id_of,
    inputs_of,
)
from moe_export.testing.cuda_kinds import CUDA_KINDS
from moe_export.testing.executors import run_reference
from moe_export.testing.tolerance import error_bound
from tests.helpers.triton_kernels import large_shape, run_kernels

SWIGLU = tuple(case for case in CASES if case.activation == "swiglu")
OTHERS = tuple(case for case in CASES if case.activation != "swiglu")

# Kinds that between them take every branch of the kernels see every case by both paths.
THOROUGH: tuple[Kind, ...] = (("float32", "float32", 0), ("float16", "int4", 32))
MOST_ROWS_TOKENS = 7

# Of the other kinds, as each token is programs of its own.
FEW_ROWS_TOKENS = 3


@pytest.fixture(autouse=True)
def _large_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "shape_of", large_shape)


def paths_of(case: Case, kind: Kind) -> list[plan.Path]:
    if case.tokens > MOST_ROWS_TOKENS:
        return ["tiles"]
    if kind in THOROUGH:
        return ["rows", "tiles"]
    if case.tokens > FEW_ROWS_TOKENS:
        return ["tiles"]
    return ["rows"] if (CASES.index(case) + CUDA_KINDS.index(kind)) % 2 else ["tiles"]


def assert_equals_the_reference(y: np.ndarray, inputs: Inputs) -> None:  # type: ignore[type-arg]
    expected = run_reference(inputs)
    assert y.dtype == expected.dtype
    assert y.shape == expected.shape
    error = np.abs(y.astype(np.float64) - expected.astype(np.float64))
    assert (error <= error_bound(inputs)).all(), f"worst {error.max()}"


@pytest.mark.parametrize(("case", "kind"), cases_and_kinds(SWIGLU, CUDA_KINDS, THOROUGH), ids=id_of)
def test_the_kernels_equal_the_reference(case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    for path in paths_of(case, kind):
        assert_equals_the_reference(run_kernels(inputs, path, 16), inputs)


@pytest.mark.parametrize("kind", THOROUGH, ids=str)
@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case.name)
def test_the_kernels_equal_the_reference_in_every_activation(case: Case, kind: Kind) -> None:
    # It comes after the sums, whatever the format is.
    inputs = inputs_of(case, *kind)
    for path in paths_of(case, kind):
        assert_equals_the_reference(run_kernels(inputs, path, 16), inputs)


# Factors multiply floats, whatever the format is: each case in one kind.
SCALED = [(case, THOROUGH[number % 2]) for number, case in enumerate(FACTOR_CASES)]


@pytest.mark.parametrize(("case", "kind"), SCALED, ids=id_of)
def test_the_kernels_equal_the_reference_with_factors_per_token(case: Case, kind: Kind) -> None:
    inputs = inputs_of(case, *kind)
    for path in paths_of(case, kind):
        assert_equals_the_reference(run_kernels(inputs, path, 16), inputs)


@pytest.mark.parametrize("kind", [kind for kind in CUDA_KINDS if kind not in THOROUGH], ids=str)
def test_up_reads_rows_of_its_own_in_every_format(kind: Kind) -> None:
    inputs = inputs_of(UP_SCALED_CASES[1], *kind)
    paths: tuple[plan.Path, ...] = ("rows", "tiles")
    for path in paths:
        assert_equals_the_reference(run_kernels(inputs, path, 16), inputs)


@pytest.mark.parametrize("kind", THOROUGH, ids=str)
def test_the_kernels_equal_the_reference_with_large_tiles(kind: Kind) -> None:
    (case,) = (case for case in CASES if case.name == "many_tokens")
    inputs = inputs_of(case, *kind)
    assert_equals_the_reference(run_kernels(inputs, "tiles", 128), inputs)


@pytest.mark.parametrize("kind", [("float16", "int4", 64), ("float16", "int8", 128)], ids=str)
@pytest.mark.parametrize("path", ["rows", "tiles"])
def test_longer_groups_than_an_expert_is_wide_are_taken(path: plan.Path, kind: Kind) -> None:
    inputs = inputs_of(Case("groups", (33, 0, 130), tokens=3, top_k=2, hidden=160), *kind)
    assert_equals_the_reference(run_kernels(inputs, path, 16), inputs)


@pytest.mark.parametrize("path", ["rows", "tiles"])
def test_a_nan_stays_in_its_own_row(path: plan.Path) -> None:
    inputs = inputs_of(Case("nan", (8, 0, 33, 7), tokens=5, top_k=2), "float32")
    inputs.expert_indices[:] = [[0, 2], [3, 0], [2, 3], [1, 0], [0, 3]]
    inputs.x[2] = np.nan
    y = run_kernels(inputs, path, 16)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(run_reference(inputs)))


@pytest.mark.parametrize("path", ["rows", "tiles"])
@pytest.mark.parametrize("index", [-1, 4, 1 << 40])
def test_an_index_that_names_no_expert_makes_its_row_nan_and_no_other(
    path: plan.Path, index: int
) -> None:
    inputs = inputs_of(Case("index", (8, 0, 33, 7), tokens=5, top_k=2), "float32")
    good = run_reference(inputs)
    indices = inputs.expert_indices.copy()
    indices[3, 1] = index
    y = run_kernels(replace(inputs, expert_indices=indices), path, 16)
    assert np.isnan(y[3]).all()
    np.testing.assert_allclose(y[:3], good[:3], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(y[4], good[4], rtol=1e-4, atol=1e-5)


def test_more_experts_than_a_block_of_counts_are_found() -> None:
    widths = tuple(int(w) for w in np.random.default_rng(3).integers(0, 5, 150))
    inputs = inputs_of(Case("experts", widths, tokens=40, top_k=2, hidden=16), "float32")
    assert_equals_the_reference(run_kernels(inputs, "tiles", 16), inputs)


@pytest.mark.parametrize("path", ["rows", "tiles"])
@pytest.mark.parametrize("activation", ["geglu", "relu", "relu2"])
def test_a_nan_stays_nan_in_every_activation(path: plan.Path, activation: Activation) -> None:
    inputs = inputs_of(Case("nan", (8, 33), tokens=2, top_k=1, activation=activation), "float32")
    inputs.x[1] = np.nan
    y = run_kernels(inputs, path, 16)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(run_reference(inputs)))
    assert np.isnan(y[1]).all()
