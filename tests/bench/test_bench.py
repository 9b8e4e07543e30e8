"""`moe-export bench` on tiny exported models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from moe_export.bench import process, turns
from moe_export.bench.models import Model, models_of
from moe_export.bench.nodes import nodes_of
from moe_export.bench.turns import PHASES
from moe_export.cli import main
from moe_export.errors import ArtifactError, DependencyError, RecipeError
from moe_export.stages.export import export_model
from moe_export.testing.tiny import pruned_checkpoint, tiny_checkpoint
from tests.helpers.decoding import exported

FEW = ["--threads", "1", "--batch", "1", "2", "--prompt-tokens", "4", "9", "--new-tokens", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with two exported variants; tests only read it."""
    root = tmp_path_factory.mktemp("bench")
    tiny_checkpoint(root / "model")
    exported(root / "model", root / "run" / "export" / "pruned")
    shutil.copytree(root / "run" / "export" / "pruned", root / "run" / "export" / "quantized")
    return root / "run"


def test_a_run_is_all_its_variants_and_a_folder_is_one_model(run: Path) -> None:
    pruned = run / "export" / "pruned"
    assert models_of([str(run)]) == [
        Model("run/pruned", pruned),
        Model("run/quantized", run / "export" / "quantized"),
    ]
    assert models_of([f"{pruned}@portable"]) == [
        Model("run/pruned@portable", pruned, operator="portable")
    ]
    assert [model.name for model in models_of([f"a={pruned}", f"b={run}"])] == [
        *("a", "b/pruned", "b/quantized")
    ]


def test_a_folder_without_a_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"^{tmp_path} holds no exported model, expected"):
        models_of([str(tmp_path)])


def test_two_models_of_one_name_are_refused(run: Path) -> None:
    with pytest.raises(RecipeError, match=r"2 models .*, of which 2 are called run/pruned; give"):
        models_of([str(run / "export" / "pruned")] * 2)


def test_a_gguf_file_needs_llama_cpp_and_is_named_after_itself(tmp_path: Path) -> None:
    file = tmp_path / "q4.gguf"
    with pytest.raises(ArtifactError, match=rf"^{file} is no file, expected a GGUF file"):
        models_of([f"{file}"], tmp_path)
    file.write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match=rf"^{file} needs llama.cpp; give --llama-cpp"):
        models_of([f"{file}"])
    own, named = models_of([f"{file}", f"peer={file}"], tmp_path)
    assert (own.name, named.name, own.llama_cpp, own.file_bytes) == ("q4", "peer", tmp_path, 4)


def test_a_folder_without_llama_cpp_is_refused_by_the_process_that_needs_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q4.gguf").write_bytes(b"GGUF")
    words = [str(tmp_path / "q4.gguf"), "--llama-cpp", str(tmp_path), "--threads", "1"]
    assert main(["bench", *words]) == DependencyError.exit_code
    assert f"q4: {tmp_path} has no libllama and libggml" in capfd.readouterr().err


def test_models_are_timed_side_by_side_on_the_terminal_and_as_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    words = [f"native={run / 'export' / 'pruned'}", f"body={run / 'export' / 'pruned'}@portable"]
    assert main(["bench", *words, *FEW, "--repeats", "2", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    rows = result["results"]
    assert [(row["variant"], row["batch"]) for row in rows[::2]] == [
        *(("native", 1), ("native", 1), ("native", 2), ("native", 2))
    ]
    assert [row["prompt_tokens"] for row in rows[:4]] == [4, 4, 9, 9]
    for row in rows:
        for phase in PHASES:
            speed = row[f"{phase}_tokens_per_s"]
            assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    file_bytes = sum(path.stat().st_size for path in (run / "export" / "pruned").iterdir())
    assert result["loaded"]["native"]["file_bytes"] == file_bytes
    printed = capsys.readouterr().out
    assert printed.count("native") == 5
    assert printed.count("1.00×") >= 4


def test_a_measurement_begins_when_the_threads_of_other_models_rest(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr(process.time, "sleep", rests.append)
    model = process.ModelProcess(Model("a", run / "export" / "pruned"), 1)
    for _ in range(2):
        assert model.run(turns.Sizes(1, 4, 1))["prefill_s"] > 0
    model.close()
    assert rests == [process.REST_S] * 2


def test_ratios_are_medians_over_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Both models get slower together, as on a machine with other work.
    seconds = {"a": [9.0, 1.0, 2.0, 4.0], "b": [9.0, 0.5, 1.0, 4.0]}

    class Process:
        def __init__(self, model: Model, threads: int) -> None:
            self.loaded = {"resident": 1.0}
            self._seconds = iter(seconds[model.name])

        def run(self, sizes: turns.Sizes) -> dict[str, float]:
            return dict.fromkeys(("prefill_s", "step_s"), next(self._seconds))

        def close(self) -> None:
            pass

    monkeypatch.setattr(turns, "ModelProcess", Process)
    monkeypatch.setattr(Model, "file_bytes", 1)
    models = [Model(name, Path(name)) for name in seconds]
    settings = turns.Settings(threads=[1], batches=[1], repeats=3)
    rows = turns.speed_table(turns.bench(models, settings)).rows
    assert [(row[5], row[7]) for row in rows] == [("1.00×", "1.00×"), ("2.00×", "2.00×")]


def test_nodes_are_timed_against_a_plain_read_of_their_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_checkpoint(tmp_path / "source", num_hidden_layers=2)
    widths = ((24, 0, 1, 7, 16, 24),) * 2
    pruned = pruned_checkpoint(source, tmp_path / "pruned", widths)
    export_model(pruned, tmp_path / "model", "float32")
    out = tmp_path / "bench.json"
    words = [f"a={tmp_path / 'model'}", "--threads", "1", "--batch", "1", "--prompt-tokens", "4"]
    words += ["--new-tokens", "2", "--repeats", "1", "--nodes", "--json", str(out)]
    assert main(["bench", *words]) == 0
    groups = {g["name"]: g for g in json.loads(out.read_text())["nodes"]["a"]["groups"]}
    assert groups["experts"]["nodes"] == 2
    # Two of six routed experts of 72 rows in all, and the shared one of 40; three vectors a row.
    assert groups["experts"]["read_bytes"] == pytest.approx(2 * (72 / 3 + 40) * 3 * 64 * 4)
    assert groups["logits"]["read_bytes"] == 264 * 64 * 4
    shown = capsys.readouterr().out
    assert "of a plain read" in shown
    moved = {"attention.out.chosen", "input_norm:3.chosen"}
    assert moved < groups.keys()
    (padding,) = re.findall(r"^padding +(\d+) ", shown, re.MULTILINE)
    assert int(padding) == sum(n.startswith("padding.") or n in moved for n in groups)


def test_nodes_of_a_model_without_the_library_are_refused(run: Path) -> None:
    (model,) = models_of([f"{run / 'export' / 'pruned'}@portable"])
    with pytest.raises(RecipeError, match="leave @portable out"):
        nodes_of(model, 1, 4, 2)


def test_tokens_that_a_model_has_no_place_for_are_refused_in_a_sentence(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--threads", "1", "--batch", "1", "--prompt-tokens", "5000", "--new-tokens", "1"]
    assert main(["bench", str(run / "export" / "pruned"), *words]) == 2
    sentence = "run/pruned: it does not run a prompt of 5000 tokens and 1 new ones in a batch of 1"
    assert sentence in capfd.readouterr().err


def test_a_damaged_model_ends_with_the_exit_code_of_its_kind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    assert main(["bench", str(tmp_path), "--threads", "1"]) == ArtifactError.exit_code
    assert "model.onnx does not load in ONNX Runtime" in capfd.readouterr().err
