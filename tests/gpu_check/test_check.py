"""`moe-export check-gpu` and `tools/gpu_check` on a machine without a GPU."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_export.cli import _parser, main
from moe_export.gpu_check.apart import Apart, ApartError
from moe_export.gpu_check.check import Check
from moe_export.gpu_check.command import obstacle
from moe_export.gpu_check.options import add_options
from moe_export.gpu_check.parts import PARTS, Part, too_late
from moe_export.gpu_check.runtime import DEMO_WORDS
from moe_export.gpu_check.targets import TARGETS, verdicts
from moe_export.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


LACKS = "no part of the check can run on this machine: torch sees no CUDA device\n"


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the variable that a check takes out of the environment, as other tests need it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_it_says_in_one_line_what_it_lacks_and_exits_with_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["check-gpu", "--parts", "conformance", "layers"]) == 3
    assert capsys.readouterr() == ("", f"moe-export: {LACKS}")


def test_the_script_runs_where_moe_export_is_not_installed(tmp_path: Path) -> None:
    # Neither packages of the command line nor pydantic are on a machine that is only lent.
    absent = "raise ImportError('not installed')"
    for name in ("rich", "pydantic", "yaml"):
        (tmp_path / f"{name}.py").write_text(absent)
    command = [sys.executable, ROOT / "tools" / "gpu_check", "--parts", "conformance", "layers"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"check-gpu: {LACKS}")


def test_a_dry_run_tells_of_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-gpu", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    parts = [line.split()[0] for line in printed.splitlines()]
    assert parts == ["conformance", "onnxruntime", "layers", "models", "peers", "demo"]
    assert printed.count("cannot run: ") == 6


@pytest.mark.parametrize("layers", [("6", "6"), ("6", "1"), ("0", "4"), ("1", "25")])
def test_two_numbers_of_layers_have_to_make_a_line(
    layers: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-gpu", "--model-layers", *layers]) == 2
    expected = "expected two different numbers from 1 to 24, the smaller first"
    assert expected in capsys.readouterr().err


def test_the_demo_part_says_where_its_recipe_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_export.gpu_check.command.DEMO_RECIPE", Path("recipes") / "none.yaml")
    expected = "recipes/none.yaml is missing; run tools/gpu_check in a checkout of moe-export"
    assert obstacle("demo") == expected


def test_a_check_that_does_not_hold_ends_with_1_and_a_part_left_out_with_3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = {"first": part("bad"), "second": part("good")}
    monkeypatch.setattr("moe_export.gpu_check.command.PARTS", parts)
    for module in ("check", "parts"):
        monkeypatch.setattr(f"moe_export.gpu_check.{module}.PARTS", parts)
    monkeypatch.setattr("moe_export.gpu_check.command.obstacle", lambda part: None)
    assert main(["check-gpu"]) == 1
    parts["first"] = part("good")
    assert main(["check-gpu"]) == 0
    reasons = {"first": None, "second": "it is too hot"}
    monkeypatch.setattr("moe_export.gpu_check.command.obstacle", reasons.get)
    assert main(["check-gpu"]) == 3


def test_every_command_line_of_the_page_is_one_that_the_check_takes() -> None:
    page = (ROOT / "docs" / "reference" / "cuda.md").read_text(encoding="utf-8")
    lines = re.findall(r"`(?:moe-export check-gpu|python tools/gpu_check)( [^`]*)?`", page)
    assert len(lines) >= 2
    for line in lines:
        _parser().parse_args(["check-gpu", *line.split()])
    for option in re.findall(r"`(--[\w-]+)[^`]*`", page[page.index("check-gpu --out") :]):
        assert option in _help_of_check_gpu(), option


def _help_of_check_gpu() -> str:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.format_help()


def test_all_parts_fit_into_the_time_of_a_command_and_none_begins_too_late() -> None:
    # Where a device is lent for 15 minutes, of which its start and what is carried there take
    # about 4, a command may take 10.
    assert sum(part.minutes for part in PARTS.values() if part.by_default) <= 9.5
    assert too_late("layers", PARTS["layers"].minutes) is None
    assert too_late("layers", 1.96) == "it takes about 2.25 min, and 2.0 are left"


def test_work_apart_gives_its_result_or_says_why_there_is_none() -> None:
    assert Apart("math", "sqrt", 4.0).result() == 2.0
    with pytest.raises(ApartError, match=r"^ValueError: "):
        Apart("math", "sqrt", -1.0).result()
    with pytest.raises(ApartError, match=r"^its process ended with code 9$"):
        Apart("os", "_exit", 9).result()
    with pytest.raises(ApartError, match=r"^it was ended after 1 s without a result$"):
        Apart("time", "sleep", 60).result(1)


def run_check(
    monkeypatch: pytest.MonkeyPatch, folder: Path, minutes: float = 10.0, **parts: Part
) -> Check:
    monkeypatch.setattr("moe_export.gpu_check.check.PARTS", parts)
    monkeypatch.setattr("moe_export.gpu_check.parts.PARTS", parts)
    check = Check(dict.fromkeys(parts), minutes, (1, 6), folder / "out.json")
    check.run(str(folder))
    assert json.loads((folder / "out.json").read_text()) == check.result
    return check


def part(function: str, **more: Any) -> Part:
    return Part("tests.gpu_check.sample_parts", function, 1, (), **more)


def test_a_part_that_crashes_is_told_of_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = run_check(monkeypatch, tmp_path, first=part("crash"), second=part("good"))
    found = check.result["parts"]
    assert [row["failed"] for row in found["first"]["rows"]] == ["its process ended with code 3"]
    assert found["second"]["rows"] == [{"what": "good", "held": True}]
    assert not check.held


def test_a_part_is_run_on_what_was_made_for_it_ahead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = run_check(
        monkeypatch, tmp_path, first=part("good"), models=part("built", ahead="build")
    )
    assert check.held
    assert not any(check.obstacles.values())
    assert not run_check(monkeypatch, tmp_path, first=part("bad")).held


def test_a_part_that_is_not_prepared_yet_lets_others_go_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = part("built", ahead="build_slowly")
    check = run_check(monkeypatch, tmp_path, models=models, second=part("good"))
    assert list(check.result["parts"]) == ["second", "models"]
    assert check.held


def test_a_part_that_comes_too_late_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check = run_check(monkeypatch, tmp_path, minutes=0.5, first=part("good"))
    assert check.result["parts"]["first"] == {"not_run": "it takes about 1 min, and 0.5 are left"}
    assert check.obstacles["first"] is not None
    assert {row["reached"] for row in check.result["targets"]} == {"not run"}


LAYERS = (
    {"layer": "skewed", "format": "bfloat16", "group": 0, "tokens": 16, "of_copy": 0.61},
    {"layer": "skewed", "format": "int4", "group": 32, "tokens": 16, "of_copy": 0.99},
    {"layer": "skewed", "format": "int4", "group": 128, "tokens": 16, "of_copy": 0.44},
    {"layer": "skewed", "format": "bfloat16", "group": 0, "tokens": 1, "us": 13.9},
    {"layer": "skewed", "format": "int4", "group": 128, "tokens": 1, "us": 9.1},
)


def test_targets_are_reached_or_missed_by_the_rows_and_not_run_without_them() -> None:
    ratio = "times_as_fast_as_padded_moe"
    peers = [{"layer": "ragged_float16", "tokens": n, ratio: 2 - n / 100} for n in (1, 4, 16)]
    short_of_one = [{"layer": "ragged_int4", "tokens": 4, "times_as_fast_as_padded_qmoe": 3.0}]
    half = {"model": "50 %", "layers": 24, "batch": 1}
    model = half | {"times_as_fast_as_dense": 1.2, "step_times_as_fast": 1.21}
    model |= {"of_dense_weight_bytes": 0.56495}
    rows = verdicts({"layers": [*LAYERS], "peers": peers + short_of_one, "models": [model]})
    assert [(row["aim"], row["found"], row["reached"]) for row in rows] == [
        ("≥ 0.6", 0.61, "yes"),
        ("≥ 0.45", 0.44, "short"),
        ("≤ 14", 13.9, "yes"),
        ("≤ 9", 9.1, "short"),
        ("≥ 1.7", 2 - 0.16, "yes"),
        ("≥ 1.7", None, "not run"),
        ("≥ 0.5", None, "not run"),
        ("≥ 1.21", 1.2, "short"),
        ("≥ 1.21", 1.21, "yes"),
        ("≤ 0.565", 0.56495, "yes"),
    ]
    assert {row["reached"] for row in verdicts({})} == {"not run"}
    assert len(rows) == len(TARGETS)


def test_the_demo_recipe_takes_the_words_that_it_is_run_with() -> None:
    recipe = load_recipe(ROOT / "recipes" / "demo_50pct.yaml", DEMO_WORDS)
    assert recipe.validate_.cache_on("cuda") == "captured"
    assert recipe.export.dtype == "float16"
