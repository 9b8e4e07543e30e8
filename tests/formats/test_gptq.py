"""Tests of GPTQ against plain rounding, with correlated inputs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moe_export.errors import CheckpointError, ShapeError
from moe_export.formats import FORMATS, GROUP_SIZES, gptq


def correlated(tokens: int, depth: int, seed: int = 0) -> NDArray[np.float32]:
    """Inputs with most of their variance in a few directions."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((depth // 4, depth))
    noise = 0.1 * random.standard_normal((tokens, depth))
    return (random.standard_normal((tokens, depth // 4)) @ mixing + noise).astype(np.float32)


def test_the_factor_is_the_upper_one_of_the_inverse() -> None:
    x_TK = correlated(200, 40).astype(np.float64)
    hessian = x_TK.T @ x_TK
    factor = gptq.inverse_factor(hessian, 0.01).astype(np.float64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * np.eye(40)
    np.testing.assert_array_equal(factor, np.triu(factor))
    # float32 keeps 24 bits of each entry.
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(40), atol=40 * 2**-20)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("name", FORMATS)
def test_without_correlation_it_is_rounding_with_searched_scales(
    name: str, group_size: int
) -> None:
    matrix = np.random.default_rng(1).standard_normal((200, 9)).astype(np.float32)
    factor = gptq.inverse_factor(np.eye(200) * 3.0, 0.01)
    actual = gptq.quantize(matrix, factor, name, group_size)
    plain = FORMATS[name](matrix, group_size, "float16", search=True)
    np.testing.assert_array_equal(actual.codes, plain.codes)
    np.testing.assert_array_equal(actual.scale, plain.scale)
    assert actual.codes.dtype == plain.codes.dtype


@pytest.mark.parametrize("name", FORMATS)
def test_products_with_alike_inputs_lose_less_than_by_rounding(name: str) -> None:
    x_TK = correlated(600, 96)
    matrix = np.random.default_rng(2).standard_normal((96, 20)).astype(np.float32)
    actual = gptq.quantize(matrix, gptq.inverse_factor(x_TK.T @ x_TK, 0.01), name, 32)
    plain = FORMATS[name](matrix, 32, "float16", search=True)
    other_TK = correlated(600, 96)[::-1]  # the mixing is the same, the order is not
    lost = {
        key: np.linalg.norm(other_TK @ (made.dequantized() - matrix))
        for key, made in (("gptq", actual), ("plain", plain))
    }
    assert lost["gptq"] < 0.6 * lost["plain"]


def test_an_empty_matrix_stays_empty() -> None:
    for shape in ((0, 5), (5, 0)):
        factor = gptq.inverse_factor(np.eye(shape[0]), 0.01)
        actual = gptq.quantize(np.zeros(shape, np.float32), factor, "int4", 32)
        assert actual.dequantized().shape == shape


def test_what_does_not_fit_or_has_no_code_is_refused() -> None:
    matrix = np.ones((4, 2), np.float32)
    with pytest.raises(ShapeError, match="a factor of"):
        gptq.quantize(matrix, np.eye(5, dtype=np.float32), "int4", 32)
    with pytest.raises(CheckpointError, match=r"weights reach 1e\+07, too large"):
        gptq.quantize(matrix * 1e7, np.eye(4, dtype=np.float32), "int4", 32)
    with pytest.raises(CheckpointError, match=r"raise quantize\.damping"):
        gptq.inverse_factor(-np.eye(4), 0.01)
