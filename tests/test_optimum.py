"""Exported models in Optimum: generation by transformers, batches with padding on either side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import moe_export
from moe_export.demo import checkpoint_dir
from moe_export.demo.tasks import test_items as items_of
from moe_export.errors import DependencyError
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.stages.export import export_model
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint

optimum = pytest.importorskip(
    "optimum.onnxruntime", reason="optimum-onnx is not installed; it is in the extra optimum"
)
from moe_export.optimum import ORTModelForCausalLM  # noqa: E402 - needs the package

pytestmark = pytest.mark.filterwarnings("ignore")

WIDTHS = ((128, 64, 96, 32) * 4,) * 4
NEW_TOKENS = 24
END = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("optimum")
    pruned = pruned_checkpoint(checkpoint_dir(), directory / "pruned", WIDTHS)
    export_model(pruned, directory / "out", "float32")
    return directory / "out"


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [item.prompt for kind in ("arithmetic", "sums", "facts") for item in items_of(kind, 8)]


@pytest.fixture(scope="module")
def answers(folder: Path, prompts: list[str]) -> list[str]:
    model = moe_export.load(folder)
    return [model.generate(prompt, NEW_TOKENS) for prompt in prompts]


def answer(model: Any, tokenizer: Any, prompts: list[str], **arguments: Any) -> list[str]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **arguments)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in new]


@pytest.mark.parametrize("operator", ["native", "portable"])
def test_generate_answers_as_our_own_decoding(
    operator: Any, folder: Path, prompts: list[str], answers: list[str]
) -> None:
    model = ORTModelForCausalLM.from_pretrained(folder, operator=operator)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [answer(model, tokenizer, [prompt])[0] for prompt in prompts] == answers


def test_a_batch_padded_on_the_left_gives_the_same_answers(
    folder: Path, prompts: list[str], answers: list[str]
) -> None:
    model = ORTModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    assert answer(model, tokenizer, prompts) == answers


def test_beams_sampling_and_the_pipeline_run(
    folder: Path, prompts: list[str], answers: list[str]
) -> None:
    model = ORTModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    torch_model = AutoModelForCausalLM.from_pretrained(folder.parent / "pruned", dtype="float32")
    beams = [answer(m, tokenizer, prompts[8:12], num_beams=3) for m in (model, torch_model)]
    assert beams[0] == beams[1] != answers[8:12]
    torch.manual_seed(0)
    inputs = tokenizer(prompts[8], return_tensors="pt", return_token_type_ids=False)
    sampled = model.generate(**inputs, max_new_tokens=4, do_sample=True, temperature=0.01)
    start = inputs["input_ids"].shape[1]
    text = tokenizer.decode(sampled[0, start:], skip_special_tokens=True)
    assert answers[8].startswith(text)
    run = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (result,) = run(prompts[8], max_new_tokens=NEW_TOKENS, do_sample=False)
    assert result["generated_text"] == prompts[8] + answers[8]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_every_family_generates_the_same_tokens_or_is_refused(
    row: FamilyRow, tmp_path: Path
) -> None:
    source = tiny_checkpoint(tmp_path / "source", base=row.config)
    pruned = pruned_checkpoint(source, tmp_path / "pruned", row.widths(24, 0, 7, 16))
    export_model(pruned, tmp_path / "out", "float32")
    ids = list(range(40, 52))
    own = OrtModel(tmp_path / "out")
    if own.fixed_states:
        with pytest.raises(DependencyError, match=r"no cache for .*_state; load the model by moe_"):
            ORTModelForCausalLM.from_pretrained(tmp_path / "out")
        return
    expected = list(generate(own, ids, 8, [256]))
    model = ORTModelForCausalLM.from_pretrained(tmp_path / "out")
    inputs = torch.tensor([ids])
    tokens = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=8, do_sample=False
    )
    assert tokens[0, len(ids) :].tolist() == expected


def test_a_family_that_is_newer_than_its_transformers_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(folder, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"model_type": "lfm2_moe"}))
    with pytest.raises(DependencyError, match=r"4\.57.*not know the model type lfm2_moe; load"):
        ORTModelForCausalLM.from_pretrained(out)
