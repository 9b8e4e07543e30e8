"""Tests of pruned checkpoints in stock transformers, and of the cost of importing moe_export."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from moe_export.checkpoint import Checkpoint
from moe_export.errors import CheckpointError
from moe_export.testing.families import ROWS, FamilyRow
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from moe_export.torch_model import load_torch_model
from tests.helpers.torch_models import ROUNDING, UNEQUAL, relative_error, some_tokens

TOKENS = some_tokens(2, 12)

ORDERS = {
    "transformers first": "import transformers, moe_export",
    "auto classes first": "from transformers import AutoModelForCausalLM; import moe_export",
    "family config between": "import moe_export; from transformers import Qwen2MoeConfig",
    "model class between": "import moe_export; from transformers import Qwen2MoeForCausalLM",
    "our model first": "import moe_export.torch_model",
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    return pruned_checkpoint(tiny_checkpoint(folder / "stock"), folder / "pruned", UNEQUAL)


def in_a_new_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_moe_export_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, moe_export, moe_export.scores; print(*sys.modules)"
    loaded = in_a_new_python(code).split()
    assert not {"torch", "transformers", "onnxruntime"} & set(loaded)


def test_registering_twice_leaves_one_finder() -> None:
    code = (
        "import sys, moe_export._transformers as t; t.register_when_imported();"
        "print(sum(isinstance(f, t._AfterImport) for f in sys.meta_path))"
    )
    assert in_a_new_python(code).strip() == "1"


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_auto_classes_know_pruned_checkpoints_in_any_import_order(pruned: Path, order: str) -> None:
    code = (
        f"{order}\nimport sys\nfrom transformers import AutoConfig, AutoModelForCausalLM\n"
        "config = AutoConfig.from_pretrained(sys.argv[1])\n"
        "print(type(AutoModelForCausalLM.from_config(config)).__name__)"
    )
    assert in_a_new_python(code, str(pruned)).strip() == "RaggedQwen2MoeForCausalLM"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.model_type)
def test_every_family_is_registered(row: FamilyRow) -> None:
    config = AutoConfig.for_model(f"moe_export_{row.model_type}")
    assert type(config).__name__.startswith("Ragged")
    assert config.model_type == f"moe_export_{row.model_type}"
    assert type(config) in AutoModelForCausalLM._model_mapping


def test_auto_model_gives_the_logits_of_the_pruned_checkpoint(pruned: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = load_torch_model(pruned, torch.float32)(TOKENS).logits
        assert relative_error(model(TOKENS).logits, expected) < ROUNDING


def test_saving_keeps_names_widths_and_values(pruned: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pruned)
    model.save_pretrained(tmp_path)
    before, after = Checkpoint(pruned), Checkpoint(tmp_path)
    assert after.config["model_type"] == "moe_export_qwen2_moe"
    assert after.config["expert_widths"] == [list(row) for row in UNEQUAL]
    assert after.tensors.keys() == before.tensors.keys()
    for name in before.tensors:
        assert (before.read(name) == after.read(name)).all(), name
    with torch.no_grad():
        expected = load_torch_model(pruned, torch.float32)(TOKENS).logits
        assert torch.equal(load_torch_model(tmp_path, torch.float32)(TOKENS).logits, expected)


def test_greedy_generation_with_the_cache_equals_recomputing(pruned: Path) -> None:
    model = load_torch_model(pruned, torch.float32)
    model.generation_config.eos_token_id = None
    mask = torch.ones_like(TOKENS)
    with_cache, without = (
        model.generate(
            TOKENS, attention_mask=mask, max_new_tokens=10, do_sample=False, use_cache=use_cache
        )
        for use_cache in (True, False)
    )
    assert with_cache.shape == (2, 22)
    assert torch.equal(with_cache, without)


def test_rope_theta_written_by_transformers_5_is_used(tmp_path: Path) -> None:
    directory = tiny_checkpoint(tmp_path / "stock", rope_theta=20000.0)
    pruned = pruned_checkpoint(directory, tmp_path / "pruned", UNEQUAL)
    config = json.loads((pruned / "config.json").read_text())
    config.pop("rope_theta")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 20000.0}
    with torch.no_grad():
        expected = load_torch_model(pruned, torch.float32)(TOKENS).logits
        (pruned / "config.json").write_text(json.dumps(config))
        for model in (
            load_torch_model(pruned, torch.float32),
            AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32),
        ):
            assert relative_error(model(TOKENS).logits, expected) < ROUNDING


def test_widths_that_do_not_fit_are_refused(pruned: Path, tmp_path: Path) -> None:
    config = json.loads((pruned / "config.json").read_text())
    config["expert_widths"][1].pop()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expert_widths must hold 3 lists of 6 widths"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "Qwen2Tokenizer"])
def test_auto_tokenizer_loads_beside_a_pruned_checkpoint(
    pruned: Path, tmp_path: Path, tokenizer_class: str
) -> None:
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = tokenizer_class
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    a, b = model["vocab"]["a"], model["vocab"]["b"]
    assert AutoTokenizer.from_pretrained(tmp_path)("abba")["input_ids"] == [a, b, b, a]
