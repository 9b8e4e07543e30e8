"""Tests of source checkpoints with tensors or storage that the family does not have."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from moe_export.artifacts.ledger import Ledger
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.cli import main
from moe_export.errors import CheckpointError
from moe_export.families import ignored, open_checkpoint, spec_of
from moe_export.testing.tiny import CONFIG, tiny_checkpoint
from tests.helpers.small_runs import write_recipe

Tensors = dict[str, NDArray[Any]]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FREQUENCIES = tuple(f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(3))


def single_shard(directory: Path, change: Callable[[Tensors], object], **keys: Any) -> Path:
    """Tiny checkpoint in one shard, with other tensors and other keys of its config."""
    source = tiny_checkpoint(directory / "source", **keys)
    tensors = {name: t for shard in source.glob("*.safetensors") for name, t in _read(shard)}
    change(tensors)
    for path in (*source.glob("model-*"), source / "model.safetensors.index.json"):
        path.unlink()
    save_file(tensors, source / "model.safetensors")
    return source


def _read(shard: Path) -> list[tuple[str, NDArray[Any]]]:
    return list(load_file(shard).items())


def store_head(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDING].copy()


def store_frequencies(tensors: Tensors) -> None:
    tensors |= dict.fromkeys(FREQUENCIES, np.ones(8, np.float32))


def until(directory: Path, model: Path, *more: str) -> int:
    path = write_recipe(directory, model)
    return main(["run", str(path), "--run", str(directory / "run"), *more])


@pytest.mark.parametrize(
    ("change", "names", "keys"),
    [
        (store_head, [HEAD], {"tie_word_embeddings": True}),
        (store_frequencies, list(FREQUENCIES), {}),
        (
            lambda tensors: tensors.update({"model.rotary_emb.cos_cached": np.ones(8, "f4")}),
            ["model.rotary_emb.cos_cached"],
            {},
        ),
    ],
)
def test_a_tensor_without_content_of_its_own_is_left_out_and_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Tensors], object],
    names: list[str],
    keys: dict[str, Any],
) -> None:
    model = single_shard(tmp_path, change, **keys)
    plain = single_shard(tmp_path / "plain", lambda tensors: None, **keys)
    assert open_checkpoint(model)[0].tensors.keys() == open_checkpoint(plain)[0].tensors.keys()
    with caplog.at_level(logging.WARNING):
        assert until(tmp_path, model, "--until", "prune") == 0
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    assert f"tensor {names[0]}{more} is left out: " in caplog.text
    ledger = Ledger.load(tmp_path / "run" / "prune")
    assert ledger.counts.dropped == len(names)
    assert ledger.dropped is not None
    assert list(ledger.dropped) == names
    assert until(tmp_path / "plain", plain, "--until", "prune") == 0
    for name in ("model.safetensors.index.json", "model-00002-of-00004.safetensors"):
        pruned = (folder / "run" / "prune" / name for folder in (tmp_path, tmp_path / "plain"))
        assert len({path.read_bytes() for path in pruned}) == 1
    assert "dropped" not in json.loads((tmp_path / "plain/run/prune/ledger.json").read_text())


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ignored, "CHUNK_VALUES", 64 * 100)  # 100 rows at a time

    def change(tensors: Tensors) -> None:
        store_head(tensors)
        tensors[HEAD][263, 63] += 1e-3

    model = single_shard(tmp_path, change, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"but lm_head\.weight has other values; set tie_wor"):
        open_checkpoint(model)


def test_equal_values_in_another_dtype_are_equal(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors[EMBEDDING] = tensors[EMBEDDING].astype(ml_dtypes.bfloat16)
        tensors[HEAD] = tensors[EMBEDDING].astype(np.float32)

    model = single_shard(tmp_path, change, tie_word_embeddings=True)
    assert open_checkpoint(model)[0].dropped == {HEAD: ignored.TIED_REASON}


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_an_unknown_tensor_stops_before_calibration_and_in_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    model = single_shard(tmp_path, lambda tensors: tensors.update(stranger=np.ones(1, "f4")))
    assert until(tmp_path, model, *arguments) == 6
    assert "tensor stranger (and 0 more) is unknown to qwen2_moe" in capsys.readouterr().err
    assert not (tmp_path / "run" / "calibrate").exists()


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("mxfp4", r"quantized by MXFP4 .* or load it with transformers and Mxfp4Config\("),
        ("fp8", r"quantized by FP8 .*FineGrainedFP8Config\(dequantize=True\)"),
        ("bitsandbytes", r"quantized by bitsandbytes .*dequantize\(\)"),
        ("gptq", r"quantized by GPTQ .*; give the checkpoint that was quantized$"),
        ("awq", r"quantized by AWQ .*; give the checkpoint that was quantized$"),
        ("hqq", r"quantized by 'hqq' .*; give the checkpoint that was quantized$"),
        (None, r"quantized weights of an unknown kind"),
    ],
)
def test_a_quantized_checkpoint_is_named_before_its_dtypes(
    tmp_path: Path, method: str | None, words: str
) -> None:
    def change(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[HEAD].astype(np.uint8)

    entry = {"quant_method": method, "bits": 4}
    model = single_shard(tmp_path, change, quantization_config=entry)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (np.float64, r"stored as F64 \(float64\), .*; save it with torch_dtype=float32"),
        (np.int32, r"stored as I32 \(packed integers, as of GPTQ or AWQ\), .*quantized from"),
        (np.uint8, r"stored as U8 \(packed codes, as of MXFP4 or bitsandbytes\)"),
    ],
)
def test_a_dtype_that_is_not_accepted_is_explained(tmp_path: Path, dtype: Any, words: str) -> None:
    model = single_shard(tmp_path, lambda t: t.update({HEAD: t[HEAD].astype(dtype)}))
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(model)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama"}, "'llama' is a dense model, it has no experts to prune"),
        ({"model_type": "new_model", "hidden_size": 8}, "'new_model' is a dense model"),
        ({"model_type": "qwen9_moe"}, "the nearest is 'qwen3_moe'"),
        ({"model_type": "new", "text_config": {"num_experts": 8}}, "'new' is not supported"),
        ({"model_type": None}, "model_type is None, expected one of deepseek_v2, deepseek_v3"),
        ({"model_type": ["mixtral"]}, r"model_type is \['mixtral'\], expected one of"),
    ],
)
def test_a_model_of_another_kind_is_named(config: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        spec_of(config)


def test_the_kind_of_model_is_refused_before_its_storage(tmp_path: Path) -> None:
    model = single_shard(tmp_path, lambda t: t.update({HEAD: t[HEAD].astype(np.uint8)}))
    content = CONFIG | {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (model / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="'gpt_oss' is not supported: its experts have"):
        open_checkpoint(model)


@pytest.mark.parametrize("pad", [264, 10**6, -1, 263])
def test_a_pad_token_outside_the_vocabulary_loads_in_torch(tmp_path: Path, pad: int) -> None:
    import torch

    from moe_export.torch_model import load_torch_model

    model = load_torch_model(tiny_checkpoint(tmp_path / "m", pad_token_id=pad), torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize("keys", [{"rms_norm_eps": 0}, {"eos_token_id": 5}])
def test_what_transformers_does_not_accept_is_one_sentence(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    import torch

    from moe_export.torch_model import load_torch_model

    if "rms_norm_eps" in keys:
        pytest.importorskip("transformers", minversion="5.0")  # 4 takes a whole number
    directory = tiny_checkpoint(tmp_path / "m", **keys)
    if "eos_token_id" in keys:
        (directory / "generation_config.json").write_text("[]")
    file = "generation_config" if "eos_token_id" in keys else "config"
    with pytest.raises(CheckpointError, match=rf"{file}\.json: transformers [\d.]+ does not acc"):
        load_torch_model(directory, torch.float32)


def test_a_prefix_of_all_names_is_told(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "model"))
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    with CheckpointWriter(wrapped, source.config, num_shards=1) as writer:
        writer.write_shard({f"module.{name}": source.read(name) for name in source.tensors})
    with pytest.raises(CheckpointError, match=r"is missing, .*names begin with 'module\.'"):
        open_checkpoint(wrapped)
