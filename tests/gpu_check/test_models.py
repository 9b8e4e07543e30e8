"""The part of `moe-export check-gpu` that runs whole models, on the CPU provider, tiny ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moe_export.gpu_check import whole_models
from moe_export.testing import layer_sizes as sizes
from moe_export.testing.synthetic_checkpoint import config_of

LAYERS = (1, 2)
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 256,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "shared_expert_intermediate_size": 64,
}


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    def small_config(family: str, size: str, layers: int | None = None) -> dict[str, Any]:
        return config_of(family, size, layers) | SMALL

    monkeypatch.setattr(whole_models, "config_of", small_config)
    monkeypatch.setattr(sizes, "EXPERTS", 4)
    monkeypatch.setattr(sizes, "FULL_WIDTH", 256)
    monkeypatch.setattr(sizes, "MEAN_WIDTH", 128)
    whole_models.build_dense(str(tmp_path), LAYERS)
    whole_models.build_pruned(str(tmp_path), LAYERS)
    return str(tmp_path)


def test_whole_models_decode_and_their_rows_hold_speeds_and_memory(
    small_models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_models, "BATCHES", (1, 2))
    folders = {path.name for path in Path(small_models).iterdir()}
    assert folders == {f"{model}-{n}" for model in ("dense", "half", "int4") for n in LAYERS}
    rows = whole_models.models(small_models, LAYERS, "cpu")
    assert [(row["model"], row["layers"], row["batch"]) for row in rows] == [
        (model, layers, batch)
        for layers in (*LAYERS, 24)
        for model in ("dense", "50 %", "50 % int4")
        for batch in (1, 2)
    ]
    for row in rows:
        assert row["decode_tokens_per_s"] == pytest.approx(row["batch"] / row["token_us"] * 1e6)
        assert ("times_as_fast_as_dense" in row) == (row["model"] != "dense")
    measured = [row for row in rows if row["layers"] in LAYERS]
    for row in measured:
        # What is said of 24 layers from the config alone is what is on disk.
        assert row["weight_bytes"] == whole_models.weight_bytes(row["layers"])[row["model"]]
        heads, head_size, positions = 4, 16, 8 + 48
        expected = row["layers"] * 2 * row["batch"] * heads * head_size * positions * 2
        assert row["kv_cache_bytes"] == expected
        assert row["path"].endswith(", static KV cache")


def test_the_time_of_all_layers_is_on_the_line_through_those_of_two_numbers_of_them() -> None:
    rows = [
        {"model": model, "layers": layers, "batch": 8, "token_us": own + 10 * layers * share}
        | {"step_us": 10 * layers * share, "weight_bytes": layers}
        for model, share in (("dense", 1.0), ("50 %", 0.5))
        for layers, own in ((1, 40), (6, 40))
    ]
    found = whole_models.of_all_layers(rows, (1, 6), {"dense": 100, "50 %": 60})
    assert [row["token_us"] for row in found] == pytest.approx([280, 160])
    assert found[0]["decode_tokens_per_s"] == pytest.approx(8 / 280e-6)
    ratios = whole_models.with_ratios(found)[1]
    assert ratios["times_as_fast_as_dense"] == pytest.approx(280 / 160)
    assert ratios["step_times_as_fast"] == pytest.approx(2.0)
    assert ratios["of_dense_weight_bytes"] == 0.6


def test_half_of_all_experts_is_at_most_what_is_aimed_at_of_the_dense_bytes() -> None:
    found = whole_models.weight_bytes(24)
    assert found["50 %"] / found["dense"] == pytest.approx(0.56495, abs=1e-5)


def test_a_model_that_fails_leaves_a_row_and_the_others() -> None:
    rows = whole_models.models("/nowhere", LAYERS, "cpu")
    assert len(rows) == 6
    assert {row["held"] for row in rows} == {False}
    assert all("model.onnx is missing" in row["failed"] for row in rows)
