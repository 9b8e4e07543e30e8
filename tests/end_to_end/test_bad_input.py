"""Tests of user errors: each ends with one sentence and its own exit code.

The run directory is untouched or can be resumed.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moe_export.cli import main
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.small_runs import recipe, write_recipe

SHARD = "model-00001-of-00002.safetensors"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("good"))


@pytest.fixture
def model(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def run(directory: Path, model: Path, /, *more: str, **sections: object) -> int:
    path = write_recipe(directory, model, **sections)
    return main(["run", str(path), "--run", str(directory / "run"), "--until", "prune", *more])


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("moe-export: ")
    return lines[0]


def edit_shard(model: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    for shard in model.glob("*.safetensors"):
        tensors = load_file(shard)
        change(tensors)
        save_file(tensors, shard, metadata={"format": "pt"})


def edit_config(model: Path, **keys: object) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def drop_shard(model: Path) -> None:
    (model / SHARD).unlink()


def truncate_shard(model: Path) -> None:
    (model / SHARD).write_bytes((model / SHARD).read_bytes()[:-9])


def misshape(model: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if EXPERT in tensors:
            tensors[EXPERT] = np.ascontiguousarray(tensors[EXPERT][:-1])

    edit_shard(model, change)


def poison(model: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        if EXPERT in tensors:
            tensors[EXPERT][0, 0] = np.nan

    edit_shard(model, change)


def add_stranger(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    tensors = load_file(model / SHARD)
    name = EXPERT.replace("up_proj", "side_proj")
    tensors[name] = np.zeros(1, np.float32)
    content["weight_map"][name] = SHARD
    save_file(tensors, model / SHARD, metadata={"format": "pt"})
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (drop_shard, 6, f"{SHARD}: the shard is missing"),
        (truncate_shard, 6, f"{SHARD}: the shard is truncated or damaged"),
        (misshape, 6, f"tensor {EXPERT} has shape [23, 64], config.json asks for [24, 64]"),
        (poison, 6, f"tensor {EXPERT} holds 1 values that are not finite"),
        (add_stranger, 6, "is unknown to qwen2_moe; the run stops rather than drop weights"),
        (lambda m: edit_config(m, model_type="qwen3_meo"), 6, "the nearest is 'qwen3_moe'"),
        (lambda m: edit_config(m, num_experts="six"), 6, "num_experts is 'six', expected a number"),
        (lambda m: edit_config(m, use_sliding_window=True), 6, "use_sliding_window is True"),
        (lambda m: (m / "config.json").write_text("{"), 6, "config.json cannot be read as JSON"),
        (lambda m: (m / "tokenizer.json").unlink(), 6, "tokenizer.json is missing"),
        (lambda m: (m / "tokenizer.json").write_text("{}"), 6, "tokenizer.json is damaged"),
    ],
)
def test_a_spoilt_checkpoint(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], object],
    code: int,
    words: str,
) -> None:
    spoil(model)
    assert run(tmp_path, model) == code
    assert words in sentence(capsys)
    marks = {path.parent.name for path in (tmp_path / "run").glob("*/stage.json")}
    assert marks <= {"calibrate"}, "the run stopped before any work on the weights"


@pytest.mark.parametrize(
    ("sections", "code", "words"),
    [
        ({"model": {"source": "no/such/place"}}, 6, "is no directory here"),
        ({"model": {"source": "README.md"}}, 6, "is a file, expected the directory"),
        ({"plan": {"keep": 0.1, "min_width": 20}}, 8, "min_width 20"),
        ({"plan": {"target_bytes": 1000}}, 8, "lie outside the experts that are pruned"),
        ({"plan": {"keep": 0.0}}, 2, "recipe.yaml:"),
        ({"calibrate": {"sources": []}}, 2, "calibrate.sources"),
        ({"calibrate": {"sources": [{"text": "absent.txt"}]}}, 7, "absent.txt: no such file"),
    ],
)
def test_a_recipe_that_cannot_be_carried_out(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, object],
    code: int,
    words: str,
) -> None:
    assert run(tmp_path, good, **sections) == code
    assert words in sentence(capsys)


def test_a_hub_id_without_a_network_says_how_to_give_a_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    assert main(["run", "recipes/qwen15_50pct.yaml", "--run", str(tmp_path / "run")]) == 3
    assert "--set model.source=DIRECTORY" in sentence(capsys)
    assert not (tmp_path / "run").exists()


def test_an_empty_text_for_calibration(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "empty.txt"
    text.write_text("")
    sections = recipe(good)["calibrate"] | {"sources": [{"text": str(text)}]}
    assert run(tmp_path, good, calibrate=sections) == 7
    assert "its 0 tokens make 0" in sentence(capsys)


def test_a_full_disk_keeps_what_is_finished(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if "w" in mode and path.parent.name == "prune":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, mode, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        assert run(tmp_path, good) == 4
        assert "no space left on the disk" in sentence(capsys)
    marks = {path.parent.name for path in (tmp_path / "run").glob("*/stage.json")}
    assert marks == {"calibrate", "importance", "plan"}
    assert run(tmp_path, good) == 0


def test_a_disk_that_is_too_small_is_noticed_before_writing(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert run(tmp_path, good) == 4
    assert "the disk has 1000 free" in sentence(capsys)
    assert not list((tmp_path / "run" / "prune").glob("*.safetensors"))


def test_an_absent_provider_is_noticed_before_the_first_stage(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, good)
    arguments = ["run", str(path), "--run", str(tmp_path / "run")]
    on_cuda = ["--set", "validate.providers=[cuda]"]
    # A float32 model is refused on CUDA on every machine.
    assert main([*arguments, *on_cuda]) == 2
    assert "float16" in sentence(capsys)
    assert main([*arguments, *on_cuda, "--set", "export.dtype=float16"]) == 3
    assert "provider 'cuda' is asked for" in sentence(capsys)
    assert not (tmp_path / "run" / "calibrate").exists()
    # Stages before validate do not need the provider.
    on_cuda += ["--set", "export.dtype=float16"]
    assert main([*arguments, *on_cuda, "--until", "prune"]) == 0


def test_without_onnx_runtime_one_sentence_says_what_to_install(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moe_export.ort import session as runtime

    monkeypatch.setattr(runtime, "installed_runtimes", dict)
    path = write_recipe(tmp_path, good)
    assert main(["run", str(path), "--run", str(tmp_path / "run")]) == 3
    assert "install moe-export[cpu]" in sentence(capsys)


def test_a_wrong_stage_name_lists_the_right_ones(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path, good)
    assert main(["run", str(path), "--from", "quantise"]) == 2
    assert "it has calibrate, importance, plan" in sentence(capsys)


@pytest.mark.parametrize(
    "arguments",
    [["verify", "absent"], ["generate", "absent", "--prompt", "x"], ["compare", "absent"]],
)
def test_a_run_that_is_not_there(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 9
    assert "absent" in sentence(capsys)
