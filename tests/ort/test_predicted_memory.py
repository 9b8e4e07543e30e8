from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moe_export.checkpoint import read_config
from moe_export.families import spec_of
from moe_export.families.quantized import in_formats
from moe_export.ort.benchmark import probe
from moe_export.ort.measuring import Setup
from moe_export.ort.predicted_memory import (
    RUNTIME_BYTES,
    folded_bytes,
    kv_cache_bytes,
    library_roles,
    predicted_resident,
    widened_bytes,
)
from moe_export.quantization import Quantization
from moe_export.recipe import SpeedSettings
from moe_export.reporting.sizes import narrowed
from moe_export.stages.export import export_model
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.variants import DATA_FILE

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


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("operator", ["native", "portable"])
def test_matrices_that_the_cpu_multiplies_in_float32_are_counted_so(
    tmp_path: Path, tied: bool, operator: str
) -> None:
    sizes = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 32}
    source = tiny_checkpoint(
        tmp_path / "source", vocab_size=60_000, tie_word_embeddings=tied, **sizes
    )
    export_model(source, tmp_path / "out", "float16")
    spec = spec_of(read_config(tmp_path / "out"))
    weights_bytes = (tmp_path / "out" / DATA_FILE).stat().st_size
    in_library = library_roles(native=operator == "native", panels=False)
    widened = widened_bytes(spec, "float16", in_library)
    predicted = predicted_resident(weights_bytes) + widened
    speed = SpeedSettings(batch_sizes=(1,), threads=(1,), prompt_tokens=8, new_tokens=2, repeats=1)
    held = probe(
        Setup(
            directory=tmp_path / "out",
            provider="cpu",
            operator=operator,
            cache="growing",
            speed=speed,
        )
    ).memory
    assert widened > 0.25 * weights_bytes
    assert abs(predicted / held.steady_resident_bytes - 1) <= 0.08
    assert widened_bytes(spec, "float32", frozenset()) == 0
    # Attention and an untied head as operators of the library stay in float16.
    less = widened_bytes(spec, "float16", library_roles(native=True, panels=True))
    assert less < widened_bytes(spec, "float16", library_roles(native=True, panels=False))


def test_a_quantized_head_leaves_no_copy_of_the_embedding_in_float32() -> None:
    tied = replace(WHOLE, tied_embeddings=True)
    table = WHOLE.vocab_size * WHOLE.hidden_size
    roles = library_roles(native=True, panels=False)
    widened = [
        widened_bytes(in_formats(tied, Quantization("int4", lm_head=head)), "float16", roles)
        for head in ("float", "int4")
    ]
    assert widened[0] - widened[1] == 4 * table


def test_the_kv_cache_of_qwen_is_two_vectors_of_2048_in_24_layers() -> None:
    assert kv_cache_bytes(WHOLE, "float16", 1) == 2 * 24 * 2048 * 2
    assert kv_cache_bytes(HALF, "float32", 4096) == 2 * 24 * 2048 * 4 * 4096
