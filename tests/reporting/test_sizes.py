"""Sizes by arithmetic, at the size of Qwen1.5-MoE-A2.7B, and `moe-export sizes`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe_export.cli import _parser, main
from moe_export.demo import checkpoint_dir
from moe_export.errors import CheckpointError, RecipeError
from moe_export.families import spec_of
from moe_export.reporting.sizes import KEEPS, SIZE_FORMATS, narrowed, sizes_of
from moe_export.testing.published import DEEPSEEK_V2_LITE
from moe_export.testing.synthetic_checkpoint import config_of

QWEN15_MOE = config_of("qwen2_moe", "qwen1.5-moe-a2.7b")


@pytest.mark.parametrize(("keep", "billions"), [(1.0, 14.3158), (0.5, 8.0872)])
def test_parameters_before_and_after_half_of_the_dimensions(keep: float, billions: float) -> None:
    assert round(narrowed(spec_of(QWEN15_MOE), keep).parameters / 1e9, 4) == billions


def test_half_of_the_dimensions_are_43_and_a_half_percent_of_the_parameters() -> None:
    before, after = (
        model.parameters for model in sizes_of(QWEN15_MOE, (1.0, 0.5), ["int4"]).models
    )
    assert round(100 * (before - after) / before, 1) == 43.5


def test_bytes_of_each_format_are_those_of_its_bits() -> None:
    models = sizes_of(QWEN15_MOE, (1.0,), ("float32", "float16", "uint4", "nf4", "int4")).models
    float32, float16, uint4, nf4, int4 = (model.file_bytes for model in models)
    assert float32 / float16 == pytest.approx(2, abs=1e-4)
    assert nf4 == int4 < uint4
    assert int4 / float16 == pytest.approx(0.297, abs=0.001)


def test_a_tied_model_has_the_bytes_of_its_quantized_head_and_its_own_parameters() -> None:
    apart = config_of("qwen2_moe", "qwen1.5-moe-a2.7b", 2)
    formats = ("float16", "int8", "int4")
    twins = sizes_of(apart, (0.5,), formats).models
    tied = sizes_of(apart | {"tie_word_embeddings": True}, (0.5,), formats).models
    table = apart["vocab_size"] * apart["hidden_size"]
    pairs = list(zip(tied, twins, strict=True))
    assert [twin.file_bytes - model.file_bytes for model, twin in pairs] == [2 * table, 0, 0]
    for model, twin in pairs:
        assert twin.parameters - model.parameters == table
        assert twin.active_parameters == model.active_parameters
    assert all(model.active_bytes == twin.active_bytes for model, twin in pairs[1:])


def test_sizes_of_a_folder_are_printed_with_the_defaults_of_the_module(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parsed = _parser().parse_args(["sizes", "config.json"])
    assert (tuple(parsed.keep), tuple(parsed.formats)) == (KEEPS, SIZE_FORMATS)
    assert main(["sizes", str(checkpoint_dir()), "--keep", "0.5", "--formats", "int8"]) == 0
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.startswith("50 %"))
    config = json.loads((checkpoint_dir() / "config.json").read_text())
    (model,) = sizes_of(config, (0.5,), ("int8",)).models
    assert f"{model.file_bytes:,}" in row
    assert "KV cache" in printed


def test_latent_attention_caches_one_vector_of_all_heads_per_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V2_LITE))
    assert (
        main(["sizes", str(tmp_path), "--keep", "1", "--formats", "int4", "--context", "32768"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "15.7065 B" in printed
    assert (
        f"in float16 {27 * (512 + 64) * 2:,} bytes per token of context: 0.95 GiB at 32,768 tokens"
        in printed
    )
    assert f"every head would take {27 * 16 * (192 + 128) * 2:,} bytes per token" in printed


def test_a_config_that_is_missing_or_of_no_family_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sizes", str(tmp_path)]) == CheckpointError.exit_code
    assert f"{tmp_path / 'config.json'} is missing" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert main(["sizes", str(tmp_path / "config.json")]) == CheckpointError.exit_code
    assert "bert" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["0", "1.5", "half"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["sizes", "config.json", "--keep", share])


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'int5' is unknown; choose among float32, .*, nf4$"):
        sizes_of(QWEN15_MOE, formats=("int8", "int5"))


@pytest.mark.parametrize(
    ("config", "fewer"),
    [
        (QWEN15_MOE, 0.175),
        (
            {
                "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048,
                "intermediate_size": 1024, "num_hidden_layers": 16, "num_attention_heads": 16,
                "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
                "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            },
            0.3415,
        ),
        (
            {
                "model_type": "phimoe", "vocab_size": 32064, "hidden_size": 4096,
                "intermediate_size": 6400, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "num_local_experts": 16, "num_experts_per_tok": 2,
                "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "attention_bias": True, "lm_head_bias": True,
            },
            0.387,
        ),
    ],
    ids=["qwen1.5", "olmoe", "phi"],
)  # fmt: skip
def test_half_of_the_experts_per_token_saves_active_parameters_and_no_bytes_of_the_file(
    config: dict[str, Any], fewer: float
) -> None:
    whole = spec_of(config).top_k
    (model,) = sizes_of(config, (1.0,), ("float16",), (whole // 2,)).models
    full = sizes_of(config, (1.0,), ("float16",)).models[0]
    assert 1 - model.active_parameters / full.active_parameters == pytest.approx(fewer, abs=5e-4)
    assert model.file_bytes == full.file_bytes
    # The vectors of compressed experts are 0.02 to 0.1 % of an expert.
    compressed = {"compressed_experts": whole // 2, "compressed_form": "three"}
    sizes = sizes_of(config | compressed, (1.0,), ("float16",))
    (tuned,) = sizes.models
    assert tuned.top_k == whole // 2
    assert sizes.whole.active_parameters == full.active_parameters
    assert 1 - tuned.active_parameters / full.active_parameters == pytest.approx(fewer, abs=1e-3)
    assert model.active_parameters < tuned.active_parameters
    assert 1 < tuned.file_bytes / full.file_bytes < 1.002


@pytest.mark.parametrize(("budget", "more"), [("added", 0.174), ("kept", 0.0)])
def test_two_condensers_of_qwen_are_read_beside_or_in_place_of_chosen_experts(
    budget: str, more: float
) -> None:
    keys = {"router_bias": True, "condenser_experts": [[0, 1]] * 24, "condenser_budget": budget}
    sizes = sizes_of(QWEN15_MOE | keys, (1.0,), ("float16",))
    (tuned,) = sizes.models
    assert tuned.top_k == (6 if budget == "added" else 4)
    found = tuned.active_parameters / sizes.whole.active_parameters - 1
    assert found == pytest.approx(more, abs=1e-3)
