"""Tests of the export stage: its files, and errors before it writes any."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from moe_export.artifacts.export import Export
from moe_export.artifacts.plan import Plan, PlannedModels
from moe_export.checkpoint import Checkpoint, CheckpointWriter
from moe_export.errors import ArtifactError, CheckpointError, RecipeError, ResourceError
from moe_export.families import spec_of
from moe_export.graph import predicted_bytes
from moe_export.op.library import LIBRARY_NAME, library_path
from moe_export.op.spec import Dtype
from moe_export.recipe import ExportSettings
from moe_export.stages.export import export_model, run
from moe_export.stages.job import Job
from moe_export.testing.families import ROWS
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from tests.helpers.artifacts import plan_with, planned_bytes
from tests.helpers.decoding import Decoder

WIDTHS = ((24, 0, 1, 7, 16, 24),) * 3


def job_of(tmp_path: Path, settings: ExportSettings) -> Job[ExportSettings]:
    """Job whose plan predicts the bytes of the prune folder correctly."""
    source = tiny_checkpoint(tmp_path / "source")
    pruned = pruned_checkpoint(source, tmp_path / "prune", WIDTHS)
    before, after = (spec_of(Checkpoint(folder).config) for folder in (source, pruned))
    sizes = {
        dtype: PlannedModels(before=planned_bytes(before, dtype), after=planned_bytes(after, dtype))
        for dtype in ("float32", "float16")
    }
    (tmp_path / "plan").mkdir()
    plan_with(export_bytes=sizes).save(tmp_path / "plan")
    (tmp_path / "export").mkdir()
    folders = {"prune": pruned, "plan": tmp_path / "plan"}
    return Job(settings=settings, model=source, folders=folders, out=tmp_path / "export")


def test_both_models_are_written_and_run(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    job = job_of(tmp_path, ExportSettings())
    run(replace(job, progress=lambda done, total, what: seen.append((done, total, what))))
    export = Export.load(job.out)
    assert export.dtype == "float32"
    assert list(export.variants) == ["pruned", "baseline"]
    ids = np.arange(6, dtype=np.int64)[None]
    logits = {}
    for variant, model in export.variants.items():
        folder = job.out / variant
        assert model.data_bytes == (folder / "model.onnx.data").stat().st_size
        assert model.data_bytes == model.weights.total_bytes
        assert model.graph_bytes == (folder / "model.onnx").stat().st_size
        logits[variant] = Decoder(folder).start(ids)
        done = [d for d, _, what in seen if what == variant]
        assert done == list(range(1, len(done) + 1))
        assert done[-1] == next(total for _, total, what in seen if what == variant)
    assert logits["pruned"].shape == (1, 6, 264)
    assert np.abs(logits["pruned"] - logits["baseline"]).max() > 0.01
    sizes = [export.variants[v].weights.by_class["experts"] for v in ("pruned", "baseline")]
    assert sizes == [3 * 3 * 64 * 72 * 4, 3 * 3 * 64 * 144 * 4]


def test_the_baseline_is_left_out_where_the_recipe_says_so(tmp_path: Path) -> None:
    job = job_of(tmp_path, ExportSettings(dtype="float16", baseline=False))
    run(job)
    assert sorted(path.name for path in job.out.iterdir()) == ["export.json", "pruned"]
    assert Export.load(job.out).dtype == "float16"
    assert Decoder(job.out / "pruned").start(np.zeros((1, 2), np.int64)).dtype == np.float16


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_web_names_lead_to_the_same_weights(dtype: Dtype, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    out = tmp_path / "out"
    export_model(source, out, dtype, web=True)
    name = {"float32": "model.onnx", "float16": "model_fp16.onnx"}[dtype]
    settings = json.loads((out / "config.json").read_text())["transformers.js_config"]
    assert settings["use_external_data_format"] == {name: 1}
    weights = out / "onnx" / f"{name}_data"
    assert sorted(path.name for path in (out / "onnx").iterdir()) == [name, weights.name]
    assert weights.read_bytes() == (out / "model.onnx.data").read_bytes()
    # onnx refuses weights that are linked.
    assert onnx.load(out / "model.onnx").graph.initializer[0].raw_data
    assert "@huggingface/transformers" in (out / "README.md").read_text()
    web = tmp_path / "web"
    shutil.copytree(out / "onnx", web)  # where model.onnx.data is not
    (web / name).rename(web / "model.onnx")
    ids = np.arange(6, dtype=np.int64)[None]
    np.testing.assert_array_equal(Decoder(web).start(ids), Decoder(out).start(ids))


def test_web_names_are_refused_for_families_that_transformers_js_does_not_know(
    tmp_path: Path,
) -> None:
    (row,) = (row for row in ROWS if row.model_type == "mixtral")
    source = tiny_checkpoint(tmp_path / "source", base=row.config)
    with pytest.raises(RecipeError, match=r"no class for the model type mixtral; leave the key"):
        export_model(source, tmp_path / "out", "float32", web=True)


def test_a_size_other_than_planned_stops_the_run(tmp_path: Path) -> None:
    job = job_of(tmp_path, ExportSettings())
    path = tmp_path / "plan" / Plan.FILE
    content = json.loads(path.read_text())
    content["export_bytes"]["float32"]["after"]["total_bytes"] += 64
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"model.onnx.data.*the plan predicted"):
        run(job)


def test_tokenizer_files_are_copied_to_the_byte(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    (source / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (source / "chat_template.json").write_text('{"chat_template": "x"}', encoding="utf-8")
    (source / "additional_chat_templates").mkdir()
    more = "additional_chat_templates/tool_use.jinja"
    (source / more).write_text("{{ tools }}", encoding="utf-8")
    export_model(source, tmp_path / "out", "float32")
    for name in (
        "tokenizer.json",
        "generation_config.json",
        "chat_template.jinja",
        "chat_template.json",
        more,
    ):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_templates_in_a_folder_outside_the_checkpoint_are_not_copied(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "tool_use.jinja").write_text("secret", encoding="utf-8")
    (source / "additional_chat_templates").symlink_to(tmp_path / "private")
    with pytest.raises(CheckpointError, match=r"tool_use.jinja is a link to .*private"):
        export_model(source, tmp_path / "out", "float32")
    assert not (tmp_path / "out" / "additional_chat_templates").exists()


def test_the_tokenizer_config_gets_nothing_but_the_tokens_around_a_text(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    export_model(source, tmp_path / "out", "float32")
    before, after = (
        json.loads((folder / "tokenizer_config.json").read_text())
        for folder in (source, tmp_path / "out")
    )
    assert after == before | {"add_bos_token": False, "add_eos_token": False}


def test_the_config_has_the_name_of_the_family_and_the_widths(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    pruned = pruned_checkpoint(source, tmp_path / "pruned", WIDTHS, (0, 17, 5))
    export_model(pruned, tmp_path / "out", "float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "qwen2_moe"
    assert config["architectures"] == ["Qwen2MoeForCausalLM"]
    spec = spec_of(config)
    assert spec.widths == WIDTHS
    assert spec.shared_widths == (0, 17, 5)
    assert spec == spec_of(Checkpoint(pruned).config)
    # In a process of its own, where moe_export has registered nothing with transformers.
    code = "import sys, transformers; c = transformers.AutoConfig.from_pretrained(sys.argv[1])\n"
    code += "print(type(c).__name__, c.expert_widths[0])"
    shown = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"Qwen2MoeConfig {list(WIDTHS[0])}\n"


def genai(tmp_path: Path, generation: dict[str, Any] | None, **overrides: Any) -> dict[str, Any]:
    """Content of genai_config.json for a tiny model with the given generation_config.json."""
    source = tiny_checkpoint(tmp_path / "source", **overrides)
    path = source / "generation_config.json"
    path.unlink()
    if generation is not None:
        path.write_text(json.dumps(generation), encoding="utf-8")
    export_model(source, tmp_path / "out", "float32")
    content: dict[str, Any] = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    return content


def test_genai_is_told_what_it_needs(tmp_path: Path) -> None:
    found = genai(tmp_path, {"eos_token_id": [256, 257], "do_sample": True, "top_p": 0.8})
    model, decoder = found["model"], found["model"]["decoder"]
    assert model["type"] == "qwen2"
    assert (model["context_length"], model["vocab_size"]) == (128, 264)
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (
        256,
        [256, 257],
        258,
    )
    sizes = ("head_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    assert [decoder[key] for key in sizes] == [16, 4, 2, 3]
    assert decoder["filename"] == "model.onnx"
    session = Decoder(tmp_path / "out").session
    names = {*decoder["inputs"].values(), *decoder["outputs"].values()}
    expanded = {name % layer if "%d" in name else name for name in names for layer in range(3)}
    assert expanded == {v.name for v in (*session.get_inputs(), *session.get_outputs())}
    assert found["search"] == {
        "do_sample": True,
        "top_p": 0.8,
        "max_length": 128,
        "past_present_share_buffer": True,
    }


def test_genai_reserves_no_more_than_4096_tokens_unless_it_is_told(tmp_path: Path) -> None:
    found = genai(tmp_path, None, max_position_embeddings=5000)
    assert (found["model"]["context_length"], found["search"]["max_length"]) == (5000, 4096)


def test_the_library_stands_beside_the_model_and_genai_finds_it_by_its_bare_name(
    tmp_path: Path,
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    export_model(source, tmp_path / "out", "float32", library=True)
    copied = tmp_path / "out" / LIBRARY_NAME
    assert copied.read_bytes() == library_path().read_bytes()
    config = json.loads((tmp_path / "out" / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    assert options["custom_ops_library"] == LIBRARY_NAME
    assert options["log_id"] == f"experts in {LIBRARY_NAME}"
    assert options["provider_options"] == []
    export_model(source, tmp_path / "bare", "float32", genai_provider="cuda")
    assert not (tmp_path / "bare" / LIBRARY_NAME).exists()
    config = json.loads((tmp_path / "bare" / "genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    assert options["log_id"] == "experts in standard operators"
    assert options["provider_options"] == [{"cuda": {}}]


def test_genai_pads_with_the_end_token_where_the_model_has_no_other(tmp_path: Path) -> None:
    found = genai(tmp_path, None, eos_token_id=[256, 257], pad_token_id=None)
    assert found["model"]["pad_token_id"] == 256


def test_a_damaged_generation_config_is_named(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    (source / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"generation_config.json cannot be read as a JSON object"
    ):
        export_model(source, tmp_path / "out", "float32")


def test_a_missing_tokenizer_stops_before_anything_is_written(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json is missing"):
        export_model(source, tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


def test_an_unknown_tensor_stops_before_anything_is_written(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    checkpoint = Checkpoint(source)
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    tensors["model.layers.0.mlp.surprise.weight"] = np.zeros((2, 2), np.float32)
    with CheckpointWriter(source, checkpoint.config, num_shards=1) as writer:
        writer.write_shard(tensors)
    with pytest.raises(CheckpointError, match="surprise"):
        export_model(source, tmp_path / "out", "float32")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny_checkpoint(tmp_path / "source")
    usage = namedtuple("usage", ("total", "used", "free"))  # noqa: PYI024 - as shutil's own
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 1, 999))
    needed = predicted_bytes(spec_of(Checkpoint(source).config), "float32").total_bytes + (64 << 20)
    with pytest.raises(ResourceError, match=f"needs {needed} bytes, the disk has 999 free"):
        export_model(source, tmp_path / "out", "float32")
    assert list((tmp_path / "out").iterdir()) == []
