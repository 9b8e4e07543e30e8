"""Tests of nf4 against bitsandbytes, bit for bit, if installed (extras `bnb` and `test`)."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moe_export.formats import FORMATS, GROUP_SIZES, QuantizedMatrix
from moe_export.formats.nf4 import CODEBOOK
from moe_export.torch_model.load import to_torch

pytest.importorskip("bitsandbytes", minversion="0.50")


def quantized_by_bitsandbytes(
    weight_NK: NDArray[Any], group_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[Any]]:
    """Codes [K, N], scales [G, N] and dequantized values [K, N] by bitsandbytes.

    K must be a multiple of the group size, so that blocks of the flattened matrix are our groups.
    """
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    packed, state = quantize_4bit(to_torch(weight_NK), blocksize=group_size, quant_type="nf4")
    # bitsandbytes has the first of two codes in the upper nibble.
    pairs = packed.numpy().reshape(-1)
    codes = np.stack([pairs >> 4, pairs & 15], axis=-1).reshape(weight_NK.shape)
    scale = state.absmax.numpy().reshape(len(weight_NK), -1)
    values = dequantize_4bit(packed, state).to(torch.float32).numpy()
    return codes.T, scale.T, values.T


def assert_the_same_bits(weight_NK: NDArray[Any], group_size: int) -> QuantizedMatrix:
    made = FORMATS["nf4"](weight_NK.T, group_size, "float16")
    codes, scale, values = quantized_by_bitsandbytes(weight_NK, group_size)
    np.testing.assert_array_equal(made.codes.astype(np.uint8), codes)
    assert made.scale.astype(np.float32).tobytes() == np.ascontiguousarray(scale).tobytes()
    # It gives values in the weights' dtype; one product is rounded to float32 and then to that.
    ours = made.dequantized().astype(weight_NK.dtype).astype(np.float32)
    assert (ours == values).all()
    return made


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=str)
def test_codes_scales_and_values_of_random_weights_are_the_same_bits(
    dtype: Any, group_size: int
) -> None:
    random = np.random.default_rng(17)
    for spread in 0.02, 1.0, 30.0:
        weight_NK = (random.standard_normal((300, 256)) * spread).astype(dtype)
        weight_NK[7] = 0
        made = assert_the_same_bits(weight_NK, group_size)
        assert len(np.unique(made.codes.astype(np.uint8))) == 16


def test_every_float16_below_1_has_the_same_code() -> None:
    # All that a weight can be beside a largest magnitude of 1, of either sign.
    positive = np.arange(0x3C01, dtype=np.uint16).view(np.float16)
    every = np.concatenate([positive, -positive])
    columns = -(-len(every) // 31)
    weight_NK = np.zeros((columns, 32), np.float16)
    weight_NK[:, 0] = 1
    weight_NK[:, 1:] = np.resize(every, (columns, 31))
    assert_the_same_bits(weight_NK, 32)


@pytest.mark.parametrize("side", [-1, 0, 1])
def test_float32_weights_at_the_midpoints_have_the_same_codes(side: int) -> None:
    # With a largest magnitude of 1, a float16 number, they are what is compared with a midpoint.
    middle = (CODEBOOK[1:] + CODEBOOK[:-1]) / np.float32(2)
    weight_NK = np.zeros((1, 32), np.float32)
    weight_NK[0, :15] = np.nextafter(middle, middle + np.float32(side)) if side else middle
    weight_NK[0, 15] = 1
    assert_the_same_bits(weight_NK, 32)


def test_the_codebook_is_the_same() -> None:
    from bitsandbytes.functional import get_4bit_type

    assert get_4bit_type("nf4", device="cpu").numpy().tobytes() == CODEBOOK.tobytes()
