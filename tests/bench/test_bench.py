"""`moe-export bench` on tiny exported models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moe_export.bench.models import Model, models_of
from moe_export.bench.turns import PHASES, speed_table
from moe_export.cli import main
from moe_export.errors import ArtifactError, RecipeError
from moe_export.testing.tiny import tiny_checkpoint
from tests.helpers.decoding import exported

FEW = ["--threads", "1", "--batch", "1", "2", "--prompt-tokens", "4", "--new-tokens", "3"]


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


def test_models_are_timed_side_by_side_on_the_terminal_and_as_json(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    words = [f"native={run / 'export' / 'pruned'}", f"body={run / 'export' / 'pruned'}@portable"]
    assert main(["bench", *words, *FEW, "--repeats", "2", "--json", str(out)]) == 0
    result = json.loads(out.read_text())
    rows = result["results"]
    assert [(row["variant"], row["batch"]) for row in rows] == [
        *(("native", 1), ("body", 1), ("native", 2), ("body", 2))
    ]
    for row in rows:
        for phase in PHASES:
            speed = row[f"{phase}_tokens_per_s"]
            assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    file_bytes = sum(path.stat().st_size for path in (run / "export" / "pruned").iterdir())
    assert result["loaded"]["native"]["file_bytes"] == file_bytes
    printed = capsys.readouterr().out
    assert printed.count("native") == 3
    assert printed.count("1.00×") >= 2


def test_ratios_are_to_the_first_model_of_the_same_setting() -> None:
    def row(name: str, batch: int, speed: float) -> dict[str, object]:
        speeds = {f"{phase}_tokens_per_s": {"median": speed} for phase in PHASES}
        return {"variant": name, "threads": 1, "batch": batch} | speeds

    rows = [row("a", 1, 10.0), row("b", 1, 15.0), row("a", 8, 40.0), row("b", 8, 30.0)]
    assert [cells[-1] for cells in speed_table({"results": rows}).rows] == [
        *("1.00×", "1.50×", "1.00×", "0.75×")
    ]


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
