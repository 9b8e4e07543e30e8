from __future__ import annotations

from dataclasses import replace

from moe_export.ort.predicted_memory import (
    RUNTIME_BYTES,
    folded_bytes,
    kv_cache_bytes,
    predicted_resident,
)
from moe_export.quantization import Quantization
from tools.pages.sizes import QWEN15_MOE, kept

MEASURED = {
    15_313_408: 37_494_784, 12_167_680: 35_127_296, 9_021_952: 31_862_784, 5_876_224: 29_102_080,
    1_749_504: 26_451_968, 5_704_192: 29_319_168, 4_034_048: 27_697_152, 3_069_440: 26_894_336,
}  # fmt: skip
"""Size of `model.onnx.data` to steady resident memory: the demo model whole and pruned, in float32,
int8 and int4, ONNX Runtime 1.32 on an AMD Zen 4.
"""


def test_resident_memory_is_predicted_within_five_percent_of_what_was_measured() -> None:
    for weights_bytes, resident_bytes in MEASURED.items():
        assert abs(predicted_resident(weights_bytes) / resident_bytes - 1) <= 0.05
    assert predicted_resident(0) == RUNTIME_BYTES


def test_experts_with_a_codebook_are_floats_where_the_function_runs_them() -> None:
    layers = ("nf4", "int4") + ("float",) * 22
    whole = kept(QWEN15_MOE, 1.0)
    mixed = replace(whole, quantization=Quantization(experts=layers))
    # The first layer's 60 experts of width 1408 and the shared one of 5632.
    elements = 3 * 2048 * (60 * 1408 + 5632)
    assert folded_bytes(mixed) == 4 * elements
    assert folded_bytes(whole) == 0


def test_the_kv_cache_of_qwen_is_two_vectors_of_2048_in_24_layers() -> None:
    whole, half = kept(QWEN15_MOE, 1.0), kept(QWEN15_MOE, 0.5)
    assert kv_cache_bytes(whole, "float16", 1) == 2 * 24 * 2048 * 2
    assert kv_cache_bytes(half, "float32", 4096) == 2 * 24 * 2048 * 4 * 4096
