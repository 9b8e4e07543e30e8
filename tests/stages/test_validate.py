from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_export.artifacts.validation import Greedy, Parity
from moe_export.documents.sources import draw
from moe_export.evaluation import tally as evaluation
from moe_export.evaluation.finite import FiniteCheck
from moe_export.evaluation.masking import ScoredTask, score_tasks
from moe_export.evaluation.parity import Compared, compare_with_torch
from moe_export.ort.benchmark import probe
from moe_export.ort.execution import execution_path
from moe_export.ort.measuring import Setup
from moe_export.ort.session import OrtModel
from moe_export.recipe import SpeedSettings, Task
from moe_export.stages.validate import _tallies_of, within
from moe_export.testing.tiny import tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.decoding import exported


def test_whole_sequences_are_taken_within_a_number_of_tokens_and_at_least_one() -> None:
    sequences = [[0] * 5, [0] * 3, [0] * 4]
    assert within(sequences, 12) == sequences
    assert within(sequences, 11) == sequences[:2]
    assert within(sequences, 4) == sequences[:1]


def test_parity_is_the_same_in_parts_and_finds_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    directory = exported(source, tmp_path / "onnx")
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 256, length).tolist() for length in (9, 4)]
    compared = Compared(sequences, prompts=[sequences[0][:5]], new_tokens=6)
    scratch = tmp_path / "logits"

    def compare(checkpoint: Path) -> tuple[Parity, Greedy]:
        open_model = partial(OrtModel, directory, operator="portable")
        parity, greedy = compare_with_torch(
            open_model, directory, checkpoint, compared, scratch, limit=1e-4
        )
        assert not scratch.exists()
        assert greedy is not None
        return parity, greedy

    whole, greedy = compare(source)
    assert whole.tokens == 13
    assert whole.max_logit_error <= 1e-4
    assert whole.first_bad_layer is None
    assert greedy == Greedy(prompts=1, new_tokens=6, agreement=1.0)
    monkeypatch.setattr(evaluation, "CHUNK_BYTES", 4 * 259 * 8)
    parts, _ = compare(source)
    assert parts.plain() == pytest.approx(whole.plain(), abs=1e-5)

    other, _ = compare(tiny_checkpoint(tmp_path / "other", seed=1))
    assert other.max_logit_error > 0.1
    assert other.first_bad_layer == 0


def test_the_path_names_a_cache_that_does_not_grow() -> None:
    assert execution_path("portable") == "portable function body"
    assert execution_path("native", "cuda", "captured") == (
        "native library (cuda), static KV cache, CUDA graph"
    )
    assert execution_path("portable", "cpu", "static") == "portable function body, static KV cache"


def test_speed_is_measured_through_the_cache_that_is_asked_for(tmp_path: Path) -> None:
    directory = exported(tiny_checkpoint(tmp_path / "source"), tmp_path / "onnx")
    speed = SpeedSettings(batch_sizes=(2,), threads=(1,), prompt_tokens=5, new_tokens=3, repeats=2)
    setup = Setup(
        directory=directory, provider="cpu", operator="portable", cache="static", speed=speed
    )
    (found,) = probe(setup).speed
    assert found.path == "portable function body, static KV cache"
    assert found.decode_tokens_per_s.min > 0


def test_the_measuring_process_loads_no_heavy_package_before_memory_is_counted() -> None:
    shown = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import moe_export.ort.measuring"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rsplit("|", 1)[-1].strip() for line in shown.stderr.splitlines() if "|" in line}
    assert "moe_export.ort.measuring" in loaded
    assert not loaded & {"pydantic", "torch", "transformers", "onnx_ir", "safetensors"}


def test_choices_of_an_exported_model_are_those_of_torch_and_in_the_order_of_documents(
    tmp_path: Path,
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    items = [
        {"q": "2+2=", "a": "4", "c": ["4", "55"]},
        {"q": "1+1=1+1=", "a": "2", "c": ["2", "3", "9"]},
        {"q": "a", "a": "b", "c": ["x", "b"]},
    ]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, items)))
    task = Task(jsonl=str(rows), prompt_field="q", answer_field="a", choices_field="c")
    sequences = draw(task, source, 3, 64, 0, "test").sequences
    model = OrtModel(exported(source, tmp_path / "onnx"), operator="portable")
    tallies = _tallies_of({"pruned": model}, task, sequences, {"pruned": FiniteCheck()})
    torch_model = load_torch_model(source, torch.float32)
    expected = score_tasks(torch_model, {"some": ScoredTask(True, sequences)})["some"]
    scores = tallies["pruned"].scores()
    assert scores.choice_accuracy == expected.choice_accuracy
    assert scores.first_token_match == expected.first_token_match
    assert len(tallies["pruned"].document_scores().choices or ()) == 3
