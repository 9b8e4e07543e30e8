"""Test of the recipe `demo_50pct_int4`: the embedded model at 50 % width and int4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_export.cli import main

MAX_POINTS = 0.015
"""Largest loss of exact match by int4 on any task, as a fraction."""

MAX_NATS = 0.03
"""Largest increase of the text loss by int4, in nats per token."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "run"
    quick = ["--set", "validate.speed={repeats: 1, new_tokens: 8, threads: [1]}"]
    assert main(["run", "recipes/demo_50pct_int4.yaml", "--run", str(directory), *quick]) == 0
    return directory


def test_int4_keeps_what_half_of_the_dimensions_kept(run: Path) -> None:
    validation = json.loads((run / "validate" / "validation.json").read_text())
    variants: dict[str, Any] = validation["providers"]["cpu"]["variants"]
    for name, before in variants["pruned"]["tasks"].items():
        after = variants["quantized"]["tasks"][name]
        if before["exact_match"] is None:
            assert after["loss_nats"] <= before["loss_nats"] + MAX_NATS
        else:
            assert after["exact_match"] >= before["exact_match"] - MAX_POINTS, name


def test_the_codes_of_experts_take_an_eighth_and_attention_stays(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    sizes = {
        entry["variant"]: {c["class"]: c["weights_bytes"] for c in entry["classes"]}
        for entry in report["memory"]["variants"]
    }
    assert 8 * sizes["quantized"]["experts"] == sizes["pruned"]["experts"]
    assert sizes["quantized"]["attention"] == sizes["pruned"]["attention"]
    assert sizes["quantized"]["scales"] > 0 == sizes["pruned"]["scales"]


def test_resident_memory_is_within_five_percent_of_what_was_predicted(run: Path) -> None:
    report = json.loads((run / "report" / "report.json").read_text())
    for entry in report["memory"]["variants"]:
        held = entry["resident"][0]["steady_resident_bytes"]
        assert abs(entry["predicted_resident_bytes"] / held - 1) <= 0.05, entry["variant"]


def test_generate_runs_the_quantized_model_unless_told_otherwise(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "Q: What is the capital of Norway?\nA:"
    assert main(["generate", str(run), "--prompt", prompt]) == 0
    assert capsys.readouterr().out == f"{prompt} Oslo.\n\n"
    (run / "export" / "quantized").rename(run / "export" / "hidden")
    assert main(["generate", str(run), "--variant", "quantized", "--prompt", prompt]) != 0
    (run / "export" / "hidden").rename(run / "export" / "quantized")
