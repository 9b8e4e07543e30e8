from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from moe_export.artifacts.stage_mark import StageMark
from moe_export.families import spec_of
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.quantization import Quantization
from moe_export.testing.synthetic_checkpoint import config_of
from tools.pages.full_size_run import QUANTIZED_KEYS, per_token, prepare
from tools.pages.stage_runs import carry_out

GIB = 2**30


def test_bytes_read_for_a_token_are_those_of_the_experts_it_goes_to() -> None:
    spec = spec_of(config_of("qwen2_moe", "qwen1.5-moe-a2.7b"))
    assert per_token(spec) / GIB == pytest.approx(4.43, abs=0.01)
    settings = {"experts": "int4", "dense": "int8", "embedding": "float", "group_size": 32}
    assert settings.keys() | {"lm_head"} == QUANTIZED_KEYS
    quantized = replace(spec, quantization=Quantization(**settings))  # type: ignore[arg-type]
    assert per_token(quantized) / GIB == pytest.approx(1.58, abs=0.01)


def test_two_layers_of_real_size_keep_to_the_memory_that_all_of_them_may_take(
    tmp_path: Path,
) -> None:
    prepare(tmp_path, layers=2)
    few = {"calibrate.sequences": 2, "calibrate.sequence_length": 128}
    for stage in ("importance", "plan", "prune", "quantize", "export"):
        carry_out(tmp_path / "recipe.yaml", tmp_path / "run", stage, few)
    limits = {"importance": 3 * GIB, "prune": 2.5 * GIB, "quantize": 2.5 * GIB, "export": 2.5 * GIB}
    for stage, limit in limits.items():
        mark = StageMark.load(tmp_path / "run" / stage)
        peak_bytes = mark.measured.peak_resident_bytes
        assert peak_bytes < limit, stage
        assert peak_bytes < 1.2 * mark.predicted.peak_resident_bytes, stage
    model = OrtModel(tmp_path / "run" / "export" / "quantized", threads=os.cpu_count() or 1)
    assert len(list(generate(model, [1, 2, 3], 4, eos_ids=[]))) == 4
