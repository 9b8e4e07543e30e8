"""The synthetic checkpoint: the size of the released model, and a model that can be loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moe_export.checkpoint import Checkpoint
from moe_export.documents.tokens import TextTokenizer
from moe_export.errors import RecipeError, ResourceError
from moe_export.families import check_tensors, spec_of
from moe_export.testing.synthetic_checkpoint import config_of, main, make

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "num_attention_heads": 4,
    "num_experts": 4,
    "num_key_value_heads": 4,
    "shared_expert_intermediate_size": 64,
    "vocab_size": 152_000,
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "small"
    config = config_of("qwen2_moe", "qwen1.5-moe-a2.7b", layers=2) | SMALL
    make(config, out, shard_bytes=40_000_000)
    return out


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (("qwen2_moe", "qwen1.5-moe-a2.7b"), 14_315_784_192),
        (("olmoe", "olmoe-1b-7b"), 6_919_161_856),
        (("lfm2_moe", "lfm2-8b-a1b"), 8_339_930_560),
        (("glm4_moe_lite", "glm-4.7-flash"), 29_943_393_920),
        (("qwen3_5_moe_text", "qwen3.5-35b-a3b"), 34_660_610_688),
    ],
)
def test_the_config_gives_the_parameters_of_the_released_model(
    model: tuple[str, str], parameters: int
) -> None:
    spec = spec_of(config_of(*model))
    assert sum(tensor.elements for tensor in spec.tensors.values()) == parameters


def test_fewer_tokens_leave_a_tokenizer_and_special_tokens_that_fit(tmp_path: Path) -> None:
    config = config_of("lfm2_moe", "lfm2-8b-a1b", layers=3, vocabulary=600)
    small = {"hidden_size": 512, "intermediate_size": 32, "moe_intermediate_size": 32}
    make(config | small, tmp_path)
    tokenizer = TextTokenizer(tmp_path)
    assert tokenizer.eos_ids == [597]
    assert config["pad_token_id"] == 597
    assert tokenizer.decode(tokenizer.encode_text("Sixty experts.")) == "Sixty experts."
    assert max(tokenizer.encode_text("The router sends each token to four.")) < 597


def test_the_checkpoint_holds_every_tensor_of_the_family_in_shards(small: Path) -> None:
    checkpoint = Checkpoint(small)
    check_tensors(checkpoint, spec_of(checkpoint.config))
    assert len({info.shard for info in checkpoint.tensors.values()}) == 2
    assert {str(info.dtype) for info in checkpoint.tensors.values()} == {"bfloat16"}


def test_values_are_spread_about_nought_and_rows_of_experts_differ_in_size(small: Path) -> None:
    up = Checkpoint(small).read("model.layers.1.mlp.experts.2.up_proj.weight").astype(np.float32)
    sizes = up.std(axis=1)
    assert abs(up.mean()) < 4 * up.std() / np.sqrt(up.size)
    # Powers of two, each within a few standard errors of a standard deviation over 128 values.
    powers = np.log2(sizes / sizes.min()).round()
    assert set(powers) == {0, 1, 2, 3}
    assert np.abs(sizes / 2**powers / np.median(sizes / 2**powers) - 1).max() < 4 / np.sqrt(256)


def test_two_makes_are_the_same(small: Path, tmp_path: Path) -> None:
    make(Checkpoint(small).config, tmp_path / "again", shard_bytes=40_000_000)
    for path in small.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_the_tokenizer_has_the_tokens_of_the_released_one_and_reads_back(small: Path) -> None:
    tokenizer = TextTokenizer(small)
    text = "The router sends each token to four of sixty experts.\n"
    tokens = tokenizer.encode_text(text)
    assert tokenizer.decode(tokens) == text
    assert len(tokens) < 0.6 * len(text)
    assert tokenizer.eos_ids == [151_643]


def test_what_cannot_be_made_is_refused(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError, match="has 24; give 1 to 24"):
        config_of("qwen2_moe", "qwen1.5-moe-a2.7b", layers=25)
    with pytest.raises(ResourceError, match="holds files"):
        make(Checkpoint(small).config, small)
    words = ["--family", "qwen2_moe", "--size", "qwen1.5-moe-a2.7b", "--layers", "0"]
    assert main([*words, "--out", str(tmp_path)]) == RecipeError.exit_code
    assert "--layers 0" in capsys.readouterr().err
