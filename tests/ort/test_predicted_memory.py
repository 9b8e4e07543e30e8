from __future__ import annotations

from dataclasses import replace

from moe_export.families import spec_of
from moe_export.ort.predicted_memory import (
    RUNTIME_BYTES,
    folded_bytes,
    kv_cache_bytes,
    predicted_resident,
)
from moe_export.quantization import Quantization
from moe_export.reporting.sizes import narrowed
from moe_export.testing.synthetic_checkpoint import config_of

WHOLE, HALF = (
    narrowed(spec_of(config_of("qwen2_moe", "qwen1.5-moe-a2.7b")), keep) for keep in (1.0, 0.5)
)

MEASURED = (
    *((15_313_408, 38_256_640), (9_021_952, 32_727_040), (3_068_416, 27_639_808)),
    *((15_313_408, 38_965_248), (9_021_952, 33_492_992), (3_068_416, 28_368_896)),
)
"""Size of `model.onnx.data` and steady resident memory, in bytes, of the demo model whole, pruned,
and with int4 experts: medians of five processes, and as a run of `demo_50pct_int4` reported them.
ONNX Runtime 1.32 on an AMD EPYC, with graphs that move padding behind the tokens.
"""


def test_resident_memory_is_predicted_within_five_percent_of_what_was_measured() -> None:
    for weights_bytes, resident_bytes in MEASURED:
        assert abs(predicted_resident(weights_bytes) / resident_bytes - 1) <= 0.05
    assert predicted_resident(0) == RUNTIME_BYTES


def test_experts_with_a_codebook_are_floats_where_the_function_runs_them() -> None:
    layers = ("nf4", "int4") + ("float",) * 22
    mixed = replace(WHOLE, quantization=Quantization(experts=layers))
    # The first layer's 60 experts of width 1408 and the shared one of 5632.
    elements = 3 * 2048 * (60 * 1408 + 5632)
    assert folded_bytes(mixed) == 4 * elements
    assert folded_bytes(WHOLE) == 0


def test_the_kv_cache_of_qwen_is_two_vectors_of_2048_in_24_layers() -> None:
    assert kv_cache_bytes(WHOLE, "float16", 1) == 2 * 24 * 2048 * 2
    assert kv_cache_bytes(HALF, "float32", 4096) == 2 * 24 * 2048 * 4 * 4096
