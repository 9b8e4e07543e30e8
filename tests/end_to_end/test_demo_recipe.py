"""Tests of the README's recipe on the embedded model against the project's promises."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import moe_export  # noqa: F401 - makes transformers know pruned checkpoints
from moe_export.artifacts.importance import Importance
from moe_export.artifacts.plan import Plan
from moe_export.cli import main
from moe_export.demo import checkpoint_dir
from moe_export.documents.tokens import TextTokenizer
from moe_export.evaluation.masking import masked
from moe_export.experts import kept_rows
from moe_export.families import spec_of
from moe_export.families.axis import Axis
from moe_export.ort.decoding import generate
from moe_export.ort.session import OrtModel
from moe_export.recipe import PruneSettings
from moe_export.stages import prune
from moe_export.stages.job import Job
from moe_export.torch_model import load_torch_model

PROMPTS = (
    "Q: Tom has 12 apples. Tom buys 30 more. How many apples does Tom have?\nA:",
    "Q: What is the capital of Norway?\nA:",
    "reverse: a b c d ->",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "run"
    quick = ["--set", "validate.speed={repeats: 1, new_tokens: 8, threads: [1]}"]
    assert main(["run", "recipes/demo_50pct.yaml", "--run", str(directory), *quick]) == 0
    return directory


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = TextTokenizer(checkpoint_dir())
    return [tokenizer.encode_prompt(text) for text in PROMPTS]


def logits_of(model: torch.nn.Module, prompt: list[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.tensor([prompt])).logits[0].numpy()
    return found


def test_half_of_the_dimensions_keep_the_skills(run: Path) -> None:
    plan = Plan.load(run / "plan")
    assert plan.kept == 0.5
    assert plan.layers[0].widths != plan.layers[1].widths
    validation = json.loads((run / "validate" / "validation.json").read_text())
    tasks = validation["providers"]["cpu"]["variants"]["pruned"]["tasks"]
    assert tasks["arithmetic"]["exact_match"] >= 0.97
    assert tasks["facts"]["exact_match"] >= 0.90


def test_masked_equals_removed(run: Path, prompts: list[list[int]], tmp_path: Path) -> None:
    folders = {name: run / name for name in ("calibrate", "importance", "plan")}
    prune.run(Job(PruneSettings(refit=False), checkpoint_dir(), folders, tmp_path))
    importance = Importance.load(run / "importance").scores["fisher_margin"]
    spec = spec_of(json.loads((checkpoint_dir() / "config.json").read_text()))
    after = spec_of(json.loads((run / "prune" / "config.json").read_text()))
    kept = [
        kept_rows(importance[layer], Axis(spec).tables[layer], after.widths[layer])
        for layer in range(spec.num_layers)
    ]
    whole = load_torch_model(checkpoint_dir(), torch.float32)
    removed = load_torch_model(tmp_path, torch.float32)
    for prompt in prompts:
        with masked(whole, kept):
            expected = logits_of(whole, prompt)
        assert np.abs(logits_of(removed, prompt) - expected).max() <= 1e-4
        assert np.abs(logits_of(whole, prompt) - expected).max() > 1e-4, "nothing was masked"


def test_stock_transformers_load_the_pruned_checkpoint_and_its_padded_twin(
    run: Path, prompts: list[list[int]]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pruned = AutoModelForCausalLM.from_pretrained(run / "prune", dtype=torch.float32)
    padded = AutoModelForCausalLM.from_pretrained(run / "prune" / "padded", dtype=torch.float32)
    assert type(padded).__name__ == "Qwen2MoeForCausalLM"
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in padded.parameters())
    for prompt in prompts:
        assert np.abs(logits_of(pruned, prompt) - logits_of(padded, prompt)).max() <= 1e-4
    assert AutoTokenizer.from_pretrained(run / "prune")(PROMPTS[0])["input_ids"] == prompts[0]


def test_sixty_four_greedy_tokens_are_those_of_torch(run: Path, prompts: list[list[int]]) -> None:
    torch_model = load_torch_model(run / "prune", torch.float32)
    ort_model = OrtModel(run / "export" / "pruned")
    for prompt in prompts:
        expected = torch_model.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=None
        )
        assert (
            list(generate(ort_model, prompt, 64, eos_ids=[])) == expected[0, len(prompt) :].tolist()
        )


def test_generate_answers_and_stops(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--prompt", PROMPTS[1]]) == 0
    assert capsys.readouterr().out == f"{PROMPTS[1]} Oslo.\n\n"
    assert main(["generate", str(run), "--cache", "static", "--prompt", PROMPTS[1]]) == 0
    assert capsys.readouterr().out == f"{PROMPTS[1]} Oslo.\n\n"


def test_generate_refuses_a_graph_on_the_cpu(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--cache", "captured", "--prompt", PROMPTS[1]]) == 2
    assert "needs the provider cuda and the native operator" in capsys.readouterr().err


def test_the_python_of_the_readme_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace("runs/demo_50pct", str(run)), {})
    tokenizer = TextTokenizer(checkpoint_dir())
    assert tokenizer.decode([int(capsys.readouterr().out)]) == "4", "12+30= begins with a 4"
