"""The page on mixers of every kind: its measurement of states, and its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_export.checkpoint import write_json
from moe_export.families import spec_of
from moe_export.recipe.load import load_recipe
from moe_export.runner.estimate import estimate
from moe_export.stages.export import export_model
from moe_export.testing.families import LFM2_MOE, QWEN3_NEXT, FamilyRow
from moe_export.testing.synthetic_checkpoint import config_of
from moe_export.testing.tiny import tiny_checkpoint
from tools.pages.page import read_data
from tools.pages.shapes_run import MODELS, VOCABULARY, found_states, predicted_states
from tools.pages.shapes_text import markdown
from tools.pages.stage_runs import write_recipe

MODEL: dict[str, Any] = {
    "title": "Example-8B",
    "machine": {"cpu": "Some CPU", "cores": 2, "memory_bytes": 2**34, "gpu": None},
    "released_layers": 24,
    "mixers": ["short_convolution", "attention", "short_convolution"],
    "moe_layers": 2,
    "calibration_tokens": 1024,
    "checkpoint_bytes": 1_500_000_000,
    "stages": {
        "prune": {
            "predicted": {"peak_resident_bytes": 2**20, "wall_s": 1.0, "output_bytes": 2**30},
            "peak_resident_bytes": 2**21,
            "wall_s": 1.5,
            "output_bytes": 2**30,
        }
    },
    "resident": {"predicted": 2**30, "found": 2**29, "file": 2**30},
    "states": {
        "predicted": {"token_bytes": 2048, "fixed_bytes": 24576},
        "found": {"token_bytes": 2050, "fixed_bytes": 24577},
    },
    "parity": {"tokens": 128, "kl_nats": 0.001, "top1_agreement": 0.75},
}


def test_a_section_has_every_prediction_beside_what_was_found() -> None:
    text = markdown({"example": MODEL})
    assert "## Example-8B, 3 of 24 layers" in text
    assert "2 × short convolution, 1 × attention; 2 with experts; 1.5 GB in bfloat16" in text
    assert "importance over 1,024 tokens. Some CPU, 2 cores, 16.0 GiB, GPU: none." in text
    assert "| prune | 1.00 MiB / 2.00 MiB | 1.00 GiB / 1.00 GiB |" in text
    assert "| resident in ONNX Runtime | 1.00 GiB / 512.0 MiB |" in text
    assert "| state per token of context | 2,048 / 2,050 bytes |" in text
    assert "| state of fixed size per sequence | 24,576 / 24,577 bytes |" in text
    assert "KL 0.00100 nats, most likely token the same at 75.0 %" in text


def test_speeds_beside_llama_cpp_have_ratios_with_their_spread() -> None:
    spread = {"min": 0.4, "median": 0.5, "max": 1.25}
    row = {
        "variant": "half int4",
        "threads": 2,
        "prefill_tokens_per_s": {"median": 300.0},
        "decode_tokens_per_s": {"median": 40.0},
        "prefill_of_first": spread,
        "decode_of_first": spread,
    }
    peer = {"mixers": ["attention"], "experts": 32, "top_k": 4, "results": [row]}
    peer["machine"] = MODEL["machine"] | {"load_average": [3.2, 2.0, 1.0]}
    assert "llama.cpp" not in markdown({"example": MODEL})
    text = markdown({"example": MODEL | {"peer": peer}})
    assert "Beside llama.cpp: 1 × attention; 32 experts, 4 of them for a token" in text
    assert "load of other work 3." in text
    assert (
        "| half int4 | 2 | 300 | 0.50× (0.40× to 1.25×) | 40.0 | 0.50× (0.40× to 1.25×) |" in text
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_that_are_made_have_every_kind_of_mixer_and_of_mlp(name: str) -> None:
    shape = MODELS[name]
    whole = spec_of(config_of(shape.family, shape.size))
    few = spec_of(config_of(shape.family, shape.size, shape.layers, VOCABULARY))
    assert set(few.mixers) == set(whole.mixers)
    assert {bool(widths) for widths in few.widths} == {bool(widths) for widths in whole.widths}
    assert (few.hidden_size, few.num_heads, few.vocab_size) == (2048, whole.num_heads, VOCABULARY)
    assert max(map(max, filter(None, few.widths))) == max(map(max, filter(None, whole.widths)))


@pytest.mark.parametrize("name", read_data("shapes"))
def test_predictions_are_not_passed_by_more_than_a_tenth(name: str, tmp_path: Path) -> None:
    shape, measured = MODELS[name], read_data("shapes")[name]
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    config = config_of(shape.family, shape.size, shape.layers, VOCABULARY)
    write_json(checkpoint / "config.json", config)
    write_recipe(tmp_path, measured["calibration_tokens"] // 512)
    predicted = {
        each.stage: each.peak_bytes
        for each in estimate(load_recipe(tmp_path / "recipe.yaml"), checkpoint)
    }
    for stage, found in measured["stages"].items():
        # The memory of calibrate depends on a tokenizer.
        if stage != "calibrate":
            assert found["peak_resident_bytes"] <= 1.1 * predicted[stage], stage
    assert measured["resident"]["found"] <= 1.1 * measured["resident"]["predicted"]
    assert measured["states"]["found"] == measured["states"]["predicted"]


@pytest.mark.parametrize("row", [LFM2_MOE, QWEN3_NEXT], ids=["lfm2_moe", "qwen3_next"])
def test_states_that_a_session_returns_are_split_into_growing_and_fixed(
    tmp_path: Path, row: FamilyRow
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=row.config)
    export_model(source, tmp_path / "out", "float16")
    predicted = predicted_states(spec_of(row.config))["predicted"]
    assert found_states(tmp_path / "out") == predicted
    assert min(predicted.values()) > 0
