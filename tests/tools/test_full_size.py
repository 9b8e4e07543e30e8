from __future__ import annotations

from dataclasses import replace

import pytest

from moe_export.families import spec_of
from moe_export.quantization import Quantization
from tools.full_size import QUANTIZED_KEYS, per_token
from tools.size_table import QWEN15_MOE

GIB = 2**30


def test_bytes_read_for_a_token_are_those_of_the_experts_it_goes_to() -> None:
    spec = spec_of(QWEN15_MOE)
    assert per_token(spec) / GIB == pytest.approx(4.43, abs=0.01)
    settings = {"experts": "int4", "dense": "int8", "embedding": "float", "group_size": 32}
    assert settings.keys() | {"lm_head"} == QUANTIZED_KEYS
    quantized = replace(spec, quantization=Quantization(**settings))  # type: ignore[arg-type]
    assert per_token(quantized) / GIB == pytest.approx(1.58, abs=0.01)
